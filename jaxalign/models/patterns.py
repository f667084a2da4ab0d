"""Repeating patterns of layers: the decoder compiles each layer of a pattern once."""

from __future__ import annotations

import functools
from collections.abc import Hashable
from typing import NamedTuple


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
