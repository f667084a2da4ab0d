"""A stage that trains on a mixture of data sets."""

from __future__ import annotations

import re

from lib import runs as h


def mixed(inputs, run, **changes):
    """A stage of 24 pairs of one file, and two fifths of the epoch from another."""
    pairs, held_out = f"{inputs}/pairs.jsonl", f"{inputs}/held_out.jsonl"
    given = {
        "stages__dpo__data__path": None,
        "stages__dpo__data__mixture": [{"path": pairs}, {"path": held_out, "share": 0.4}],
        "stages__dpo__steps": None,
        "stages__dpo__epochs": 1.0,
    }
    return h.recipe(inputs, run, "dpo", **(given | changes))


def test_a_stage_trains_on_a_mixture_for_its_epochs(tmp_path):
    inputs = h.write_inputs(tmp_path)
    printed = h.run(mixed(inputs, tmp_path / "run"), h.one_device())
    assert [line["step"] for line in h.metrics(tmp_path / "run/dpo")] == [1, 2, 3, 4, 5]
    assert f"dpo: training data, {inputs}/pairs.jsonl, 24 examples an epoch" in printed
    assert f"dpo: training data, {inputs}/held_out.jsonl, 16 examples an epoch" in printed
    assert re.search(r"examples kept +13 *\n", printed)
