from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.data.rows import (
    ATTENTION_LENGTH,
    SCORED_UNIT,
    Demand,
    Shape,
    common_shapes,
    kept_shapes,
    lay_out,
    round_up,
    row_lengths,
)


def test_sizes_are_rounded_up_to_a_small_set():
    assert [round_up(n, 1) for n in (0, 1, 2, 3, 5, 7, 9, 13, 17, 100)] == [
        *(1, 1, 2, 3, 6, 8, 12, 16, 24, 128)
    ]
    assert [round_up(n, 64) for n in (0, 64, 65, 129, 257, 600)] == [64, 64, 128, 192, 384, 768]


def test_row_lengths_lie_between_the_longest_example_and_the_largest_row():
    assert row_lengths(150, 700) == [256, 384, 512, 640, 700]
    assert row_lengths(600, 512) == [640, 768, 896, 1024]
    assert [n / 128 for n in row_lengths(1800, 5000)] == [
        *(15, 16, 18, 20, 22, 24, 26, 28, 30, 32, 36, 5000 / 128)
    ]
    assert row_lengths(5, 64) == [64]


def cost(shape):
    """What a batch of a shape costs, in slots."""
    slots = shape.rows * shape.row_length * (1 + shape.row_length / ATTENTION_LENGTH)
    return slots + shape.chunks * shape.scored


@st.composite
def batches(draw):
    """What 1 to 12 batches of one run ask of their shapes."""
    n_cells, chunks = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    cell = st.lists(st.integers(0, 900), min_size=6, max_size=6)
    one = st.builds(
        Demand,
        st.lists(cell, min_size=n_cells, max_size=n_cells),
        st.just(chunks),
        st.integers(1, 2000),
    )
    return draw(st.lists(one, min_size=1, max_size=12))


@given(batches(), st.integers(1, 5), st.sampled_from([128, 512, 2048]))
@settings(max_examples=60, deadline=None)
def test_each_batch_has_one_of_the_common_shapes(run, count, row_length):
    shapes = common_shapes(run, row_length, count)
    assert len(shapes) <= count
    assert {lay_out(cells, row_length, shapes)[0] for cells in run} <= set(shapes)


@given(batches(), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_rows_of_a_shape_hold_what_lies_in_them(run, count):
    shapes = common_shapes(run, 512, count)
    for cells in run:
        shape, places = lay_out(cells, 512, shapes)
        for lengths, cell in zip(cells.lengths, places, strict=True):
            used = np.zeros(shape.rows, int)
            for length, place in sorted(zip(lengths, cell, strict=True), key=lambda x: x[1]):
                assert place.offset == used[place.row]
                used[place.row] += length
            assert used.max() <= shape.row_length


@given(batches())
@settings(max_examples=40, deadline=None)
def test_a_batch_alone_has_the_shape_that_costs_it_least(run):
    for cells in run:
        (shape,) = common_shapes([cells], 1024, 1)
        longest = max(map(max, cells.lengths))
        scored = SCORED_UNIT * -(-cells.scored // SCORED_UNIT)
        wide = Shape(10**6, 0, cells.chunks, scored)
        others = []
        for length in row_lengths(longest, 1024):
            _, places = lay_out(cells, 1024, [wide._replace(row_length=length)])
            rows = max(place.row for cell in places for place in cell) + 1
            others.append(Shape(rows, length, cells.chunks, scored))
        assert shape in others
        assert cost(shape) == min(map(cost, others))


@given(batches(), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_a_batch_has_the_cheapest_of_the_shapes_that_hold_it(run, count):
    shapes = common_shapes(run, 512, count)
    for cells in run:
        holding = [s for s in shapes if lay_out(cells, 512, [s])[0] == s]
        assert cost(lay_out(cells, 512, shapes)[0]) == min(map(cost, holding))


def test_batches_that_are_alike_share_a_shape():
    run = [Demand([[size] * 4], 1, scored) for size, scored in ((120, 64), (128, 60), (1000, 640))]
    assert common_shapes(run, 1024, 2) == [Shape(4, 128, 1, 64), Shape(4, 1024, 1, 640)]


@pytest.mark.parametrize("counts, kept", [((9, 1, 9), (128, 640)), ((1, 9, 9), (384, 640))])
def test_what_is_often_seen_keeps_the_shape_that_fits_it(counts, kept):
    sizes = np.repeat([128, 384, 640], counts).tolist()
    run = [Demand([[size]], 1, 64) for size in sizes]
    assert common_shapes(run, 640, 2) == [Shape(1, length, 1, 64) for length in kept]


def test_rows_are_doubled_where_an_example_needs_it():
    (shape,) = common_shapes([Demand([[300]], 1, 1), Demand([[20]], 1, 1)], 128, 1)
    assert shape == Shape(1, 384, 1, 64)


def uniform(rows, chunks=1):
    """Batches that fill so many rows of 128 tokens, 64 of them scored."""
    return [Demand([[128] * rows], chunks, 64)] * 3


@pytest.mark.parametrize(
    ("before", "number", "kept"),
    [(8, 10**6, True), (10, 90, True), (10, 110, False), (16, 24, True)],
)
def test_earlier_shapes_are_kept_if_they_cost_at_most_25_batches_more(before, number, kept):
    own, earlier = [Shape(8, 128, 1, 64)], [Shape(before, 128, 1, 64)]
    assert kept_shapes(uniform(8), earlier, own, 128, number) == (earlier if kept else own)


def test_earlier_shapes_that_hold_no_batch_cost_what_shapes_of_their_own_cost():
    # 13 rows are rounded up to 16.
    earlier, own = [Shape(1, 128, 1, 64)], [Shape(13, 128, 1, 64)]
    assert kept_shapes(uniform(13), earlier, own, 128, 100) == earlier
    assert kept_shapes(uniform(13), earlier, own, 128, 130) == own


def test_earlier_shapes_with_other_chunks_are_not_kept():
    own = [Shape(8, 128, 2, 64)]
    assert kept_shapes(uniform(8, 2), [Shape(8, 128, 1, 64)], own, 128, 1) == own
