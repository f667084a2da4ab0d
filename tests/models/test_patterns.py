"""Runs of repeated patterns of layers."""

import numpy as np
import pytest

from jaxalign.models.patterns import Run, by_layer, runs


@pytest.mark.parametrize(
    "layers, wanted",
    [
        ("AAAA", [Run(0, 1, 4)]),
        ("ABABAB", [Run(0, 2, 3)]),
        ("BBBAAAAA", [Run(0, 1, 3), Run(3, 1, 5)]),
        ("SSSF" * 16, [Run(0, 4, 16)]),
        ("ABC", [Run(0, 3, 1)]),
        ("A", [Run(0, 1, 1)]),
    ],
)
def test_as_few_layers_as_possible_are_compiled(layers, wanted):
    assert runs(tuple(layers)) == tuple(wanted)


def test_a_pattern_that_ends_early_needs_one_more_run():
    found = runs(tuple("SSSSSF" * 4 + "SS"))
    assert sorted(run.period for run in found) == [1, 6]


@pytest.mark.parametrize("layers", ["AAAA", "ABABAB", "SSSSSFSSSSSFSS", "AABBAABBC", "ABCABCA"])
def test_every_layer_is_in_one_stack_of_its_kind(layers):
    stacks = [s for run in runs(tuple(layers)) for s in run.stacks]
    assert sorted(i for s in stacks for i in s) == list(range(len(layers)))
    assert all(len({layers[i] for i in s}) == 1 for s in stacks)


@pytest.mark.parametrize("layers", ["AAAA", "ABABAB", "AABBAABBC", "ABCABCA"])
def test_what_layers_return_is_in_their_order(layers):
    found = [[np.array(stack) * 1.0 for stack in run.stacks] for run in runs(tuple(layers))]
    assert by_layer(found).tolist() == list(range(len(layers)))


def test_places_that_return_nothing_are_left_out():
    assert by_layer([[None, np.array([1.0, 3.0])], [None]]).tolist() == [1.0, 3.0]
    assert by_layer([[None, None]]) is None
