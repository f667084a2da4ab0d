from __future__ import annotations

from lib.recipes import minimal, with_stage

from jaxalign.recipe.diff import differences
from jaxalign.recipe.read import parse, resolved


def test_equal_recipes_do_not_differ():
    values = resolved(parse(minimal()))
    assert differences(values, values) == []


def test_a_difference_shows_both_values():
    one = resolved(parse(minimal()))
    two = resolved(parse(with_stage(objective={"name": "sft"})))
    assert differences(one, two) == [
        "stages.dpo.objective.name: dpo -> sft",
        "stages.dpo.objective.beta: 0.1 -> absent",
        "stages.dpo.objective.label_smoothing: 0.0 -> absent",
    ]
