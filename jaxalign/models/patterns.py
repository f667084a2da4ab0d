"""Repeating patterns of layers: the decoder compiles each layer of a pattern once."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core.types import Array


class Run(NamedTuple):
    """`repeats` times the same `period` layers, one after another, from layer `first` on."""

    first: int
    period: int
    repeats: int

    @property
    def stacks(self) -> tuple[range, ...]:
        """The layers of each place of the pattern, whose parameters are stacked."""
        stop = self.first + self.period * self.repeats
        return tuple(range(self.first + i, stop, self.period) for i in range(self.period))


@functools.cache
def runs(layers: tuple[Hashable, ...]) -> tuple[Run, ...]:
    """Layers as consecutive runs, so that as few layers as possible are compiled.

    Among equals, those with the fewest runs, then those whose first patterns are shortest.
    """
    count = len(layers)
    numbers = {layer: i for i, layer in enumerate(layers)}
    kinds = [numbers[layer] for layer in layers]
    best: list[tuple[int, int, tuple[Run, ...]]] = [(0, 0, ())] * (count + 1)
    for first in reversed(range(count)):
        options = []
        for period in range(1, count - first + 1):
            pattern = kinds[first : first + period]
            for stop in range(first + period, count + 1, period):
                if kinds[stop - period : stop] != pattern:
                    break
                compiled, more, rest = best[stop]
                run = Run(first, period, (stop - first) // period)
                options.append((period + compiled, 1 + more, (run, *rest)))
        best[first] = min(options, key=lambda option: option[:2])
    return best[0][2]


def by_layer(found: Sequence[Sequence[Any]]) -> Any:
    """What the layers of each run returned -> the same of all layers, on one leading axis.

    Args:
      found: a tree of arrays for each place of the pattern of each run, with a leading axis of
        repeats; None where the layers of a place return nothing.

    Returns:
      One tree; None if no layer returns anything.
    """
    places = [[x for x in run if x is not None] for run in found]

    def in_order(*xs: Array) -> Array:
        return jnp.stack(xs, 1).reshape(-1, *xs[0].shape[1:])

    whole = [jax.tree.map(in_order, *run) for run in places if run]
    return jax.tree.map(lambda *xs: jnp.concatenate(xs), *whole) if whole else None
