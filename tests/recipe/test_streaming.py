"""Stages that cannot be trained on streamed data are refused when the recipe is read."""

from __future__ import annotations

import pytest
from lib.recipes import with_stage

from jaxalign.errors import UserError
from jaxalign.recipe.read import parse


def streamed(objective="sft", **changes):
    data = {"path": "p", "streaming": True}
    return with_stage(**({"objective": {"name": objective}, "data": data, "steps": 9} | changes))


@pytest.mark.parametrize("name", ["sft", "simpo"])
def test_an_objective_without_a_reference_may_stream(name):
    assert parse(streamed(name)).stages["dpo"].data.streaming


def test_a_live_reference_may_stream():
    assert parse(streamed("dpo", reference={"mode": "live"})).stages["dpo"].data.streaming


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            streamed(steps=None, epochs=2.0),
            r"^at: stages.dpo.steps: missing; .* so epochs have no length; give .*steps$",
        ),
        (
            streamed(data={"mixture": [{"path": "a"}], "streaming": True}),
            r"^at: stages.dpo.data.mixture: data.streaming reads one data set; give",
        ),
        (streamed("dpo"), r"^at: stages.dpo.reference.mode: .*; set it to live \(got 'cached'\)$"),
        (
            streamed("kto", reference={"mode": "live"}),
            r"^at: stages.dpo.data.streaming: kto needs responses to other .* set it to false",
        ),
        (
            streamed("inpo", reference={"mode": "live"}),
            r"^at: stages.dpo.data.streaming: inpo needs statistics of the start, .* to false",
        ),
        (
            streamed("bradley_terry"),
            r"^at: stages.dpo.data.streaming: bradley_terry needs a pad token .* set it to false",
        ),
    ],
)
def test_a_stage_that_needs_all_of_its_data_is_refused(values, message):
    with pytest.raises(UserError, match=message):
        parse(values, "at")
