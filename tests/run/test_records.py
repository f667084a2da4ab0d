"""What training records for the report."""

from __future__ import annotations

import json

import pytest
from lib import runs as h

from jaxalign.report import read


@pytest.fixture(scope="module")
def run(inputs, tmp_path_factory):
    """A finished run of sft, without held-out data, and dpo, with it."""
    folder = tmp_path_factory.mktemp("records") / "run"
    held_out = {"stages__dpo__data__eval_path": f"{inputs}/held_out.jsonl"}
    h.run(h.recipe(inputs, folder, **held_out), h.one_device())
    return folder


def load(path):
    return json.loads(path.read_text())


def test_the_row_counts_of_both_data_sets_are_recorded(run):
    data = load(run / "dpo" / "data.json")
    assert (data["train"]["kept"], data["held_out"]["kept"]) == (h.TRAIN, h.HELD_OUT)
    assert data["updates"] == h.STEPS["dpo"]
    assert "held_out" not in load(run / "sft" / "data.json")


def test_the_time_of_every_phase_is_recorded(run):
    phases = ["reading data", "reference pass", "compiling", "training", "evaluating"]
    timings = load(run / "dpo" / "timings.json")
    assert list(timings) == [*phases, "saving", "exporting"]
    assert min(timings.values()) >= 0.0
    assert timings["compiling"] > 0.0


def test_the_standard_errors_of_the_last_evaluation_are_recorded(run):
    recorded = load(run / "dpo" / "held_out.json")
    assert (recorded["step"], recorded["examples"]) == (h.STEPS["dpo"], h.HELD_OUT)
    assert recorded["standard_errors"]["rewards/margins"] > 0.0
    assert not (run / "sft" / "held_out.json").exists()


def test_the_report_reads_what_training_records(run):
    found = read.read_run(run)
    assert (found.problems, found.state) == ((), "finished")
    stage = found.stages[1]
    assert stage.counts["train"]["examples kept"] == h.TRAIN
    assert stage.held_out["rewards/margins"].error > 0.0
    assert stage.held_out_examples == h.HELD_OUT
