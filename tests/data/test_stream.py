"""Examples of a data set that is tokenized while it is trained on."""

from __future__ import annotations

import functools
import itertools
import json
import threading

import chex
import numpy as np
import pytest
from lib.rows import PLAIN, pair

from jaxalign.core.layouts import PAIRS, RANKED
from jaxalign.data import stream as streams
from jaxalign.data import tokenize
from jaxalign.data.cut import Limits
from jaxalign.data.encode import Encoder
from jaxalign.data.loader import Loader
from jaxalign.data.sources import raw_records
from jaxalign.data.stream import Known, Stream
from jaxalign.data.tokenize import Job, load_examples
from jaxalign.errors import UserError
from jaxalign.sealed import read_own
from jaxalign.settings import Data

PART, COUNT = 4, 14
"""Rows of a part and of the data: three whole parts and one of two rows."""


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(tokenize, "ROWS", PART)


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "data.jsonl", [pair(f"{i}", f" {i}", " no") for i in range(COUNT)])


def write(file, rows):
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def make_stream(path, *, seed=0, check=lambda examples: None, layout=PAIRS, **changes):
    """The stream of a file, which keeps its sizes next to the file."""
    settings, encoder = Data(path=str(path), **changes), Encoder(PLAIN)
    file = path.with_suffix(".sizes")
    first = load_examples(Data(path="", limit=PART), str(path), "", encoder, layout, seed=0)
    return Stream(
        job=Job(settings, Limits.of(settings), encoder, layout, ()),
        rows=functools.partial(raw_records, str(path), ""),
        where=str(path),
        first=first,
        seed=seed,
        check=check,
        kept=read_own(file, Known) if file.exists() else None,
        keep=file.write_text,
    )


def taken(stream, place, count):
    """(number, place in the file) of some examples of a stream."""
    examples = stream.examples(place)
    try:
        found = list(itertools.islice(examples, count))
    finally:
        examples.close()
    return [(number, item.where.split()[-1]) for number, item in found]


def test_a_pass_has_every_example_once_with_its_number(path):
    found = taken(make_stream(path), 0, 2 * COUNT)
    wanted = [(i, str(i + 1)) for i in range(COUNT)]
    assert sorted(found[:COUNT]) == sorted(found[COUNT:]) == wanted


def test_parts_come_in_order_and_each_is_shuffled(path):
    numbers = [number for number, _ in taken(make_stream(path), 0, COUNT)]
    parts = [numbers[i : i + PART] for i in range(0, COUNT, PART)]
    assert list(map(sorted, parts)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13]]
    assert len({tuple(np.subtract(part, part[0])) for part in parts[:3]}) > 1


def test_passes_and_seeds_have_different_orders(path):
    found = taken(make_stream(path), 0, 2 * COUNT)
    assert found[:COUNT] != found[COUNT:]
    assert taken(make_stream(path, seed=1), 0, COUNT) != found[:COUNT]


@pytest.mark.parametrize("known", [0, 6, 3 * COUNT], ids=["new", "some", "all"])
@pytest.mark.parametrize("place", [1, PART, 9, COUNT, 2 * COUNT + 5])
def test_a_stream_is_the_same_from_every_place(path, place, known):
    whole = taken(make_stream(path), 0, 4 * COUNT)
    path.with_suffix(".sizes").unlink()
    taken(make_stream(path), 0, known)
    assert taken(make_stream(path), place, COUNT) == whole[place : place + COUNT]


def test_a_resumed_stream_tokenizes_no_part_before_its_place(path, monkeypatch):
    taken(make_stream(path), 0, COUNT + 1)
    rows = []

    def counted(job, part):
        rows.append(part[0][0].split()[-1])
        return tokenize.tokenize_part(job, part)

    monkeypatch.setattr(streams, "tokenize_part", counted)
    taken(make_stream(path), 5 * COUNT + 2 * PART, 1)
    assert rows[0] == "9"


def test_no_more_than_the_next_part_is_tokenized_ahead(path, monkeypatch):
    made = []
    ahead = threading.Event()

    def counted(job, part):
        made.append(part)
        if len(made) == 2:
            ahead.set()
        return tokenize.tokenize_part(job, part)

    monkeypatch.setattr(streams, "tokenize_part", counted)
    examples = make_stream(path).examples(PART)
    next(examples)
    assert ahead.wait(10)
    assert not threading.Event().wait(0.2)
    examples.close()
    assert len(made) == 2


def test_a_stream_that_is_closed_leaves_no_thread(path):
    taken(make_stream(path), 0, 3)
    assert not [t for t in threading.enumerate() if t.name.startswith("tokenize")]


def test_rows_over_the_limit_are_not_read(path):
    found = taken(make_stream(path, limit=6), 0, 12)
    assert sorted(number for number, _ in found) == sorted(2 * list(range(6)))


def test_a_part_of_which_nothing_is_left_is_passed_over(path):
    rows = [pair(f"{i}", " yes", " yes" if 4 <= i < 8 else " no") for i in range(10)]
    stream = make_stream(write(path, rows))
    found = taken(stream, 0, 12)
    assert sorted(found[:6]) == [(i, str(i + 1 if i < 4 else i + 5)) for i in range(6)]
    assert taken(make_stream(path), 5, 7) == found[5:]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (8, r"data.jsonl: it has 2 parts, unlike before, so the run would go on with"),
        (13, r"data.jsonl: part 3 has 1 examples, unlike before"),
        (20, r"data.jsonl: part 3 has 4 examples, unlike before, .*; restore the data, or train"),
    ],
)
def test_a_resumed_stream_refuses_data_that_changed(path, rows, message):
    taken(make_stream(path), 0, COUNT + 1)
    write(path, [pair(f"{i}") for i in range(rows)])
    with pytest.raises(UserError, match=message):
        taken(make_stream(path), PART, COUNT)


def test_every_part_is_checked(path):
    def check(examples):
        assert len(examples) == PART
        raise UserError(f"{examples[0].where}: no")

    with pytest.raises(UserError, match=r"data.jsonl line 5: no"):
        taken(make_stream(path, check=check), 0, COUNT)


def test_a_part_with_another_number_of_responses_is_refused(path):
    rows = [{"prompt": "Q", "responses": list("abc")[: 3 if i < 6 else 2]} for i in range(8)]
    rows[4:6] = []
    with pytest.raises(UserError, match=r"line 5: has 2 responses; the rows before have 3"):
        taken(make_stream(write(path, rows), layout=RANKED), 0, 6)


def loader(stream):
    return Loader(
        stream.first, batch_size=3, microbatches=1, shards=1, row_length=64, shapes=1, seed=0
    )


def batches(path, start, stop):
    stream = make_stream(path)
    return list(loader(stream).streamed(stream.examples(3 * start), start, stop))


def test_batches_of_a_stream_are_the_same_after_a_resume(path):
    whole = batches(path, 0, 10)
    assert [int(i) for b in whole for i in b.example.reshape(-1)] == [
        number for number, _ in taken(make_stream(path), 0, 30)
    ]
    chex.assert_trees_all_equal(batches(path, 6, 10), whole[6:])


def test_a_response_longer_than_those_of_the_first_part_has_room(path):
    rows = [pair(f"{i}", " yes" * (50 if i == 6 else 1)) for i in range(8)]
    found = batches(write(path, rows), 0, 3)
    assert {b.mask.shape[-1] for b in found} == {16, 64}
    assert max(int(b.mask.sum(-1).max()) for b in found) == 51
