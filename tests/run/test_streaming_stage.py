"""A stage that tokenizes its data while it trains."""

from __future__ import annotations

import json
import shutil

import chex
import pytest
from lib import runs as h
from lib.steps import one_device

from jaxalign.data import stream, tokenize
from jaxalign.errors import UserError
from jaxalign.report.read import read_run
from jaxalign.run import term
from jaxalign.run.check_data import check_branches
from jaxalign.run.inspect import inspect, open_stage_data

pytestmark = pytest.mark.slow

STEPS = 6


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    for module in (tokenize, stream, term):
        monkeypatch.setattr(module, "ROWS", 10)


def streamed(inputs, run, **changes):
    """24 pairs in parts of 10 rows, twice."""
    given = {"stages__sft__data__streaming": True, "stages__sft__steps": STEPS}
    return h.recipe(inputs, run, "sft", **(given | changes))


def test_a_killed_run_on_a_stream_resumes_to_the_same_bits(tmp_path):
    recipe = streamed(h.write_inputs(tmp_path), tmp_path / "run")
    printed = h.run(recipe, one_device())
    assert "sft: training data, the first 10 rows" in printed
    stage = tmp_path / "run/sft"
    kept = json.loads((stage / "stream.json").read_text())
    assert (kept["sizes"], kept["whole"], kept["counts"]["kept"]) == ([10, 10, 4], True, 24)
    assert read_run(tmp_path / "run").stages[0].counts["train"]["examples kept"] == 24
    before = h.tensors(stage / "model")
    assert h.sealed(stage) == [4, 6]
    for name in ("checkpoints/step-00000006.json", "model"):
        path = stage / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "resumes after update 4 of 6" in h.run(recipe, one_device())
    assert json.loads((stage / "stream.json").read_text()) == kept
    chex.assert_trees_all_equal(h.tensors(stage / "model"), before)


def test_a_later_part_is_checked_against_the_model(tmp_path):
    inputs = h.write_inputs(tmp_path)
    rows = [*map(h.pair, range(12)), h.pair(0) | {"chosen": "1" * 60}]
    h.write_rows(inputs / "pairs.jsonl", rows)
    long = {"stages__sft__data__max_length": 70}
    stage = h.prepared(streamed(inputs, tmp_path / "run", **long), "sft", one_device())
    assert stage.stream is not None
    examples = stage.stream.examples(0)
    with pytest.raises(UserError, match=r"data.max_length: a prompt with its response has 6\d tok"):
        list(examples)


def test_more_branches_than_those_of_the_first_part_are_refused_by_number(tmp_path):
    inputs = h.write_inputs(tmp_path)
    one = h.prepared(h.recipe(inputs, tmp_path / "run", "sft"), "sft", one_device())
    two = h.prepared(h.recipe(inputs, tmp_path / "run", "dpo"), "dpo", one_device())
    check_branches(one.train, one.model)
    with pytest.raises(UserError, match=r"line 1 and .* 2 scored sequences; the model was built"):
        check_branches(two.train, one.model)


def test_an_inspection_of_a_stream_reads_its_first_part(tmp_path):
    recipe = streamed(h.write_inputs(tmp_path), tmp_path / "run")
    found = inspect(open_stage_data(recipe, "sft"))
    assert [source.counts.kept for source in found.sources] == [10]
