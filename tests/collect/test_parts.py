"""Data files that are made part by part."""

import json
from pathlib import Path

import pytest

from jaxalign.collect import parts
from jaxalign.collect.parts import line, write_parts
from jaxalign.errors import RunError, UserError

INPUTS = {"prompts": "a" * 64, "weights": "b" * 64}
COUNT = 3


class Kill(BaseException):
    pass


def rows(i):
    return [{"part": i, "row": j, "text": "ä\n\u2028"} for j in range(2)]


def bytes_of(count=COUNT):
    return "".join(line(row) for i in range(count) for row in rows(i)).encode()


class Maker:
    """Makes parts, and remembers which; a process dies before it makes `killed`."""

    def __init__(self, killed=None):
        self.killed, self.made = killed, []

    def __call__(self, i):
        if i == self.killed:
            raise Kill
        self.made.append(i)
        return rows(i)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "stage" / "data.jsonl"


def killed_at(out, part, inputs=INPUTS):
    with pytest.raises(Kill):
        write_parts(out, inputs, COUNT, Maker(part))


def test_a_file_has_the_rows_of_all_parts_in_order(out):
    write_parts(out, INPUTS, COUNT, Maker())
    assert out.read_bytes() == bytes_of()
    assert [json.loads(text)["part"] for text in out.read_bytes().split(b"\n")[:-1]] == [
        i for i in range(COUNT) for _ in range(2)
    ]


def test_nothing_but_the_file_is_left(out):
    write_parts(out, INPUTS, COUNT, Maker())
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("part", range(COUNT))
def test_a_file_appears_only_whole(out, part):
    killed_at(out, part)
    assert not out.exists()
    names = [f"{i:06d}.jsonl" for i in range(part)]
    folder = out.with_name("data.jsonl.parts")
    assert sorted(path.name for path in folder.iterdir()) == [*names, "inputs.json"]


@pytest.mark.parametrize("part", range(COUNT))
def test_a_killed_process_resumes_at_the_missing_part_with_the_same_bytes(out, part):
    killed_at(out, part)
    maker = Maker()
    write_parts(out, INPUTS, COUNT, maker)
    assert maker.made == list(range(part, COUNT))
    assert out.read_bytes() == bytes_of()


def test_a_part_that_was_half_written_is_made_again(out):
    killed_at(out, 1)
    folder = out.with_name("data.jsonl.parts")
    (folder / "000001.jsonl.tmp").write_bytes(b'{"part":')
    write_parts(out, INPUTS, COUNT, Maker())
    assert out.read_bytes() == bytes_of()


def test_a_finished_file_is_left_alone_whatever_its_inputs(out):
    write_parts(out, INPUTS, COUNT, Maker())
    before = out.stat().st_mtime_ns
    maker = Maker()
    write_parts(out, {"prompts": "other"}, COUNT, maker)
    assert maker.made == []
    assert out.stat().st_mtime_ns == before


def test_parts_that_a_kill_left_next_to_a_finished_file_go(out, monkeypatch):
    def killed(folder):
        raise Kill

    with monkeypatch.context() as patch:
        patch.setattr(parts.shutil, "rmtree", killed)
        with pytest.raises(Kill):
            write_parts(out, INPUTS, COUNT, Maker())
    assert out.read_bytes() == bytes_of()
    write_parts(out, INPUTS, COUNT, Maker(0))
    assert list(out.parent.iterdir()) == [out]


OTHERS = {
    "a changed one": (INPUTS | {"weights": "c" * 64}, f"weights: {'b' * 12} -> {'c' * 12}\n"),
    "a new one": (INPUTS | {"adapter": "d" * 64}, f"adapter: none -> {'d' * 12}\n"),
    "one less": ({"prompts": "a" * 64}, f"weights: {'b' * 12} -> none\n"),
}


@pytest.mark.parametrize(("inputs", "message"), OTHERS.values(), ids=OTHERS)
def test_parts_of_other_inputs_are_refused_by_name(out, inputs, message):
    killed_at(out, 2)
    with pytest.raises(UserError, match=message) as error:
        write_parts(out, inputs, COUNT, Maker())
    assert "data.jsonl.parts: its parts were made from other inputs" in str(error.value)
    assert "delete the folder, or add --accept-changes" in str(error.value)
    assert "prompts" not in str(error.value)
    write_parts(out, INPUTS, COUNT, Maker())  # nothing was changed
    assert out.read_bytes() == bytes_of()


def test_accepted_changes_make_every_part_again(out):
    killed_at(out, 2)
    maker = Maker()
    write_parts(out, {"prompts": "other"}, COUNT, maker, accept_changes=True)
    assert maker.made == list(range(COUNT))


def test_no_kill_gives_old_parts_new_inputs(out, monkeypatch):
    killed_at(out, 2)

    def killed(file, text):
        raise Kill

    other = {"prompts": "other"}
    with monkeypatch.context() as patch:
        patch.setattr(parts, "write_whole", killed)
        with pytest.raises(Kill):
            write_parts(out, other, COUNT, Maker(), accept_changes=True)
    maker = Maker()
    write_parts(out, other, COUNT, maker, accept_changes=True)
    assert maker.made == list(range(COUNT))


def test_a_kill_while_old_parts_are_deleted_leaves_the_record_of_their_inputs(out, monkeypatch):
    killed_at(out, 2)
    delete, deleted = Path.unlink, []

    def killed(file):
        if deleted:
            raise Kill
        deleted.append(file)
        delete(file)

    other = {"prompts": "other"}
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(Kill):
            write_parts(out, other, COUNT, Maker(), accept_changes=True)
    with pytest.raises(UserError, match="its parts were made from other inputs"):
        write_parts(out, other, COUNT, Maker())


def test_parts_without_the_record_of_their_inputs_are_made_again(out):
    killed_at(out, 2)
    (out.with_name("data.jsonl.parts") / "inputs.json").unlink()
    maker = Maker()
    write_parts(out, INPUTS, COUNT, maker)
    assert maker.made == list(range(COUNT))


def test_a_damaged_record_of_the_inputs_is_refused(out):
    killed_at(out, 2)
    (out.with_name("data.jsonl.parts") / "inputs.json").write_text("{")
    with pytest.raises(RunError, match=r"inputs\.json: damaged .*; delete .*data\.jsonl\.parts to"):
        write_parts(out, INPUTS, COUNT, Maker())


def test_a_folder_that_cannot_be_made_is_a_failure_that_names_it(tmp_path):
    (tmp_path / "stage").touch()
    with pytest.raises(RunError, match=r"stage/data\.jsonl\.parts"):
        write_parts(tmp_path / "stage" / "data.jsonl", INPUTS, COUNT, Maker())


@pytest.mark.parametrize("value", ["ä\n", 'a "b"', "\u2028", {"a": [1, None, 0.1]}])
def test_a_row_is_one_line_that_reads_back(value):
    text = line({"x": value})
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert json.loads(text) == {"x": value}


# A file with a record of its inputs


def write_recorded(out, maker, inputs=INPUTS, **options):
    write_parts(out, inputs, COUNT, maker, record=True, **options)


def test_a_file_with_a_record_is_not_made_again_from_the_same_inputs(out):
    write_recorded(out, Maker())
    maker = Maker()
    write_recorded(out, maker)
    assert maker.made == []
    assert sorted(p.name for p in out.parent.iterdir()) == [out.name, f"{out.name}.inputs.json"]


@pytest.mark.parametrize(("inputs", "message"), OTHERS.values(), ids=OTHERS)
def test_a_file_with_a_record_of_other_inputs_is_refused_by_name(out, inputs, message):
    write_recorded(out, Maker())
    with pytest.raises(UserError, match=message) as error:
        write_recorded(out, Maker(), inputs)
    assert "data.jsonl: was made from other inputs" in str(error.value)
    assert "delete the file, or add --accept-changes to make it again" in str(error.value)
    assert out.read_bytes() == bytes_of()


def test_accepted_changes_make_a_file_with_a_record_again(out):
    write_recorded(out, Maker())
    killed, maker, other = Maker(1), Maker(), {"prompts": "other"}
    with pytest.raises(Kill):
        write_recorded(out, killed, other, accept_changes=True)
    assert not out.exists()
    write_recorded(out, maker, other)
    assert (killed.made, maker.made) == ([0], [1, 2])
    write_recorded(out, Maker(0), other)


def test_a_file_whose_record_is_missing_is_refused(out):
    write_parts(out, INPUTS, COUNT, Maker())
    with pytest.raises(RunError, match=r"inputs\.json: damaged .*; delete .* to make it again"):
        write_recorded(out, Maker())
