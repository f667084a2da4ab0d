"""Rows of packed examples: how long and how many, in few shapes, each of which is compiled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

ATTENTION_LENGTH = 16384
"""Row length (tokens) at which the packer assumes attention costs as much as the rest of a layer:
about 6x the model width, here for width 2,700. Only breaks ties between shapes with nearly equal
slot counts."""
SCORED_UNIT = 64
"""M, the scored tokens of a chunk, is a multiple of it."""


COMPILATION = 25
"""How many batches cost as much as the compilation of their shapes, as a rule of thumb."""


class Shape(NamedTuple):
    """Sizes of a cell in which batches of a run may differ."""

    rows: int  # K
    row_length: int  # L, tokens
    chunks: int
    scored: int  # M, of a chunk


class Place(NamedTuple):
    """The place of an example in its cell."""

    row: int
    offset: int
    segment: int  # its number in the row, from 1


class Demand(NamedTuple):
    """What a batch asks of its shape."""

    lengths: list[list[int]]  # of the examples of each cell, tokens
    chunks: int
    scored: int  # the most scored tokens of a chunk


def row_lengths(longest: int, largest: int) -> list[int]:
    """The lengths that a batch's rows may have, shortest first.

    128 * (1, 2, 3, ..., 16, 18, 20, ..., 32, 36, ...) tokens, between the longest example and
    `largest`, which is doubled until that example fits.
    """
    while largest < longest:
        largest *= 2
    lengths, length = [], 128
    while length < largest:
        lengths += [length] if length >= longest else []
        length += max(128, 2 ** (length.bit_length() - 1) // 8)
    return [*lengths, largest]


def round_up(count: int, unit: int) -> int:
    """The least of unit * (1, 2, 3, 4, 6, 8, 12, 16, ...) that is no less than count."""
    size = unit
    while size < count:
        size *= 2
    between = size // 4 * 3
    return between if size > 2 * unit and between >= count else size


def lay_out(
    demand: Demand, row_length: int, shapes: Sequence[Shape]
) -> tuple[Shape, list[list[Place]]]:
    """The shape of a batch, and the place of every example of its cells.

    It is the first of `shapes` that holds the batch. Where none does, it is the one of its own that
    costs least, K and M rounded up, so that few such shapes differ; `row_length` is as in `pack`.
    """
    for shape in shapes:
        if shape.row_length >= _longest(demand) and shape.scored >= demand.scored:
            places = [_first_fit(cell, shape.row_length) for cell in demand.lengths]
            if _rows(places) <= shape.rows:
                return shape, places
    lengths = row_lengths(_longest(demand), row_length)
    rows = [round_up(k, 1) for k in _rows_needed(demand, lengths)]
    best = np.argmin([k * _row_cost(length) for k, length in zip(rows, lengths, strict=True)])
    scored = round_up(demand.scored, SCORED_UNIT)
    shape = Shape(rows[best], lengths[best], demand.chunks, scored)
    return shape, [_first_fit(cell, shape.row_length) for cell in demand.lengths]


def common_shapes(batches: Sequence[Demand], row_length: int, count: int) -> list[Shape]:
    """Shapes, no more than `count`, one of which holds each of the batches; the cheapest first.

    Groups of batches, at first of one alone, are joined two at a time: those whose common shape
    costs least more than the two had cost. A scored token costs as much as a slot; in a model's
    head and body either may be dearer.

    Args:
      batches: with the same number of chunks, at least one.
      row_length: L, the most, tokens; doubled until the longest example fits.
      count: at least 1.
    """
    lengths = row_lengths(1, row_lengths(max(map(_longest, batches)), row_length)[-1])
    row_costs = np.array([_row_cost(length) for length in lengths])
    chunks = batches[0].chunks

    def need(demand: Demand) -> list[float]:
        fitting = [length for length in lengths if length >= _longest(demand)]
        rows = [math.inf] * (len(lengths) - len(fitting)) + _rows_needed(demand, fitting)
        return [*rows, -(-demand.scored // SCORED_UNIT)]

    needs, sizes = np.unique([need(demand) for demand in batches], axis=0, return_counts=True)

    def cost(needs: np.ndarray) -> np.ndarray:
        of_rows = (needs[..., :-1] * row_costs).min(-1)
        return of_rows + chunks * SCORED_UNIT * needs[..., -1]

    def extra(i: int) -> np.ndarray:
        joined = (sizes + sizes[i]) * cost(np.maximum(needs, needs[i]))
        more = joined - sizes * cost(needs) - sizes[i] * cost(needs[i])
        more[i] = np.inf
        return more

    extras = np.stack([extra(i) for i in range(len(needs))])
    while len(needs) > count:
        i, j = sorted(divmod(int(extras.argmin()), len(extras)))
        needs[i], sizes[i] = np.maximum(needs[i], needs[j]), sizes[i] + sizes[j]
        needs, sizes = np.delete(needs, j, 0), np.delete(sizes, j)
        extras = np.delete(np.delete(extras, j, 0), j, 1)
        extras[i] = extras[:, i] = extra(i)
    best = (needs[:, :-1] * row_costs).argmin(-1)
    return [
        Shape(int(needs[i, at]), lengths[at], chunks, SCORED_UNIT * int(needs[i, -1]))
        for i, at in sorted(enumerate(best), key=lambda item: cost(needs[item[0]]))
    ]


def kept_shapes(
    batches: Sequence[Demand],
    before: Sequence[Shape],
    own: Sequence[Shape],
    row_length: int,
    number: int,
) -> Sequence[Shape]:
    """The shapes of earlier, similar data, if they cost less than the compilation of others.

    Args:
      batches: with the same number of chunks, at least one.
      before: the earlier shapes.
      own: the `common_shapes` of the batches.
      row_length: L, the most, tokens.
      number: how many such batches there will be.
    """

    def cost(shapes: Sequence[Shape]) -> float:
        each = (lay_out(batch, row_length, shapes)[0] for batch in batches)
        return sum(s.rows * _row_cost(s.row_length) + s.chunks * s.scored for s in each)

    fits = all(shape.chunks == batches[0].chunks for shape in before)
    if not fits:
        return own
    more = cost(before) / cost(own) - 1
    return before if more * number <= COMPILATION else own


def _longest(demand: Demand) -> int:
    return max(length for cell in demand.lengths for length in cell)


def _row_cost(length: int) -> float:
    """What a row costs, in slots: of attention, a share that grows with its length."""
    return length * (1 + length / ATTENTION_LENGTH)


def _rows_needed(demand: Demand, lengths: Sequence[int]) -> list[int]:
    """K for rows of each length, where every example fits in one."""
    return [_rows([_first_fit(cell, length) for cell in demand.lengths]) for length in lengths]


def _rows(places: Sequence[Sequence[Place]]) -> int:
    """K, the rows that the fullest of the cells takes."""
    return max(place.row for cell in places for place in cell) + 1


def _first_fit(lengths: Sequence[int], row_length: int) -> list[Place]:
    """Where each item goes: the longest first, into the first row that has room."""
    places = [Place(0, 0, 0)] * len(lengths)
    used: list[int] = []
    held: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        row = next((k for k, u in enumerate(used) if u + lengths[i] <= row_length), len(used))
        if row == len(used):
            used.append(0)
            held.append(0)
        held[row] += 1
        places[i] = Place(row, used[row], held[row])
        used[row] += lengths[i]
    return places
