"""The command that shows what data becomes, and its function."""

from __future__ import annotations

import json
import re

import pytest
from lib import runs as h
from lib.folders import HOSTILE
from lib.rows import CHAT_A, CHAT_Q

import jaxalign
from jaxalign.data.store import ROWS


@pytest.fixture
def data(tmp_path):
    """`data(*rows)`: the path of a file with these rows."""

    def write(*rows):
        h.write_rows(tmp_path / "data.jsonl", list(rows))
        return tmp_path / "data.jsonl"

    return write


def test_inspect_prints_one_json_object_and_nothing_else(inputs, tmp_path):
    command = ("inspect", f"{inputs}/pairs.jsonl", "--model", f"{inputs}/model", "--json")
    done = h.cli(*command, cache=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["layout"] == "pairs"
    assert found["sources"][0]["counts"]["kept"] == h.TRAIN
    assert [r["name"] for r in found["examples"][0]["responses"]] == ["chosen", "rejected"]


def test_a_recipe_gives_what_its_data_and_settings_give(inputs, tmp_path):
    values = h.values(inputs, tmp_path / "run")
    recipe = h.write_recipe(tmp_path / "recipe.yaml", values)
    settings = values["stages"]["dpo"]["data"] | {"objective": "dpo", "batch_size": h.BATCH}
    path, model = settings.pop("path"), f"{inputs}/model"
    assert jaxalign.inspect(recipe) == jaxalign.inspect(path, model=model, **settings)
    assert not (tmp_path / "run").exists()


def test_training_reads_the_tokens_of_an_inspected_recipe(inputs, tmp_path):
    values = h.values(inputs, tmp_path / "run", "dpo")
    jaxalign.inspect(values)
    (made,) = tmp_path.rglob("parts.json")
    before = made.stat().st_mtime_ns
    jaxalign.train(values)
    assert [*tmp_path.rglob("parts.json")] == [made]
    assert made.stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_data_set_of_several_parts_is_read_by_several_processes(inputs, data):
    path = data(*[{"prompt": "1+1=", "completion": "2"}] * (ROWS + 4))
    assert jaxalign.inspect(path, model=f"{inputs}/model").counts.kept == ROWS + 4


def test_a_stage_and_its_overrides_choose_the_data(inputs, tmp_path):
    values = h.values(inputs, tmp_path / "run")
    found = jaxalign.inspect(values, stage="sft", overrides={"stages.sft.data.limit": 5})
    assert (found.layout, found.counts.kept) == ("demonstrations", 5)


def test_a_mixture_has_the_columns_and_the_rows_of_each_source(inputs, tmp_path):
    mixture = [{"path": f"{inputs}/{name}.jsonl"} for name in ("pairs", "held_out")]
    values = h.values(inputs, tmp_path / "run", "dpo")
    values["stages"]["dpo"]["data"] = {"mixture": [mixture[0] | {"rows": 5}, mixture[1]]}
    found = jaxalign.inspect(values)
    sources = [(s.path, s.counts.kept, s.epoch) for s in found.sources]
    assert sources == [
        (mixture[0]["path"], h.TRAIN, 5),
        (mixture[1]["path"], h.HELD_OUT, h.HELD_OUT),
    ]
    assert {c.name for s in found.sources for c in s.columns} == {*h.pair(0)}
    assert found.packing.batches == 3
    assert found.counts.kept == h.TRAIN + h.HELD_OUT


def test_a_row_of_a_mixture_is_that_of_the_first_source_that_has_it(inputs, tmp_path):
    paths = [f"{inputs}/{name}.jsonl" for name in ("held_out", "pairs")]
    values = h.values(inputs, tmp_path / "run", "dpo")
    values["stages"]["dpo"]["data"] = [{"path": path} for path in paths]
    found = [jaxalign.inspect_row(values, n).where for n in (1, h.HELD_OUT + 1)]
    assert found == [f"{paths[0]} line 1", f"{paths[1]} line {h.HELD_OUT + 1}"]
    with pytest.raises(jaxalign.UserError, match=r"held_out.* no row 999; .*pairs.* no row 999"):
        jaxalign.inspect_row(values, 999)


def test_a_stage_has_the_chat_template_of_the_stage_before(inputs, tmp_path, data):
    (tmp_path / "template").write_text("{% for m in messages %}|{{ m['content'] }}{% endfor %}")
    path = data({"messages": CHAT_Q + CHAT_A})
    values = h.values(inputs, tmp_path / "run", "sft", "emo")
    for stage in values["stages"].values():
        stage["data"]["path"] = str(path)
    values["stages"]["sft"]["data"]["chat_template"] = f"{tmp_path}/template"
    first, second = (jaxalign.inspect(values, stage=name).examples for name in ("sft", "emo"))
    assert first == second
    assert first[0].prompt.endswith("|Q")


def test_the_text_of_a_data_set_has_no_control_characters(inputs, data, jaxalign_command):
    row = {"prompt": HOSTILE, "completion": "4", HOSTILE: HOSTILE}
    for more in ((), ("--row", 1)):
        _, out, _ = jaxalign_command("inspect", data(row), "--model", f"{inputs}/model", *more)
        assert "\\x1b[31m\\u202e" in out
        assert re.findall(r"[^\n\x20-\x7e◆⟦⟧ ▁▂▃▄▅▆▇█]", out) == []


def test_marks_tell_scored_tokens_and_the_stop_token_apart(inputs, data, jaxalign_command):
    row = {"prompt": "1+1=", "completion": "2"}
    code, out, _ = jaxalign_command("inspect", data(row), "--model", f"{inputs}/model")
    assert code == 0
    assert re.search(r"^response: ⟦2◆.+⟧$", out, re.MULTILINE)


def test_a_row_of_the_file_says_why_it_is_refused(inputs, data, jaxalign_command):
    path = data({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": " "})
    flags = ("--model", f"{inputs}/model", "--row", 2)
    code, out, _ = jaxalign_command("inspect", path, *flags)
    assert code == 0
    assert "line 2: 'completion' is empty" in out
    assert '"completion": " "' in out


WRONG = {
    "refused row": ([{"prompt": "a", "completion": " "}], (), r"line 1: 'completion' is empty"),
    "no rows": ([], (), "it has no rows"),
    "other columns": ([{"x": 1}], (), "line 1: no known columns"),
    "too many tokens": (
        [{"prompt": "a", "completion": "b" * 99}],
        (),
        r"data\.max_length: .* made for 64 positions",
    ),
    "out of range": ([], ("--max-length", 0), r"max_length: .* greater than 0 \(got 0\)"),
    "objective": ([], ("--objective", "dop"), r"no objective 'dop'; did you mean 'dpop'\?"),
    "row": ([{"prompt": "a", "completion": "b"}], ("--row", 2), r"it has no row 2"),
    "model": ([], ("--model", "./nowhere"), r"model: no folder \./nowhere"),
}


@pytest.mark.parametrize("rows, flags, message", WRONG.values(), ids=WRONG)
def test_wrong_input_is_one_error(inputs, data, refused, rows, flags, message):
    given = ("inspect", data(*rows), "--model", f"{inputs}/model", *flags)
    assert re.search(message, refused(*given))


def test_an_unknown_setting_is_refused_with_the_near_one(inputs):
    with pytest.raises(jaxalign.UserError, match=r"max_lenth: unknown; did you mean 'max_length'"):
        jaxalign.inspect(f"{inputs}/pairs.jsonl", model=f"{inputs}/model", max_lenth=3)


def test_settings_of_a_data_set_are_refused_with_a_recipe(inputs, tmp_path):
    with pytest.raises(jaxalign.UserError, match="got max_length; use overrides"):
        jaxalign.inspect(h.values(inputs, tmp_path), max_length=3)
