"""A sample of the mistakes of `mutation.py`; its command plants all of them."""

import ast

import pytest
from mutation import mutants, survivors

from jaxalign.objectives import OBJECTIVES


def test_a_mistake_is_a_flipped_sign_or_a_dropped_term():
    done = [ast.unparse(tree) for _, _, tree in mutants(ast.parse("y = a + -b.sum(-1)"))]
    assert done == [
        "y = a - -b.sum(-1)",
        "y = a",
        "y = -b.sum(-1)",
        "y = a + b.sum(-1)",
    ]


@pytest.mark.slow
def test_a_mistake_in_an_objective_is_caught():
    planted, lived = survivors(list(OBJECTIVES), every=50)
    assert planted > 10
    assert lived == []
