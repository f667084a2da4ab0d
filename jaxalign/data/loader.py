"""The order of examples, and batches of them by step."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import count, islice
from typing import NamedTuple

import numpy as np

from ..core.batch import Batch
from .examples import Example, Item
from .mixture import Mixture, epoch_order, joined, whole
from .pack import CachedStats, cell_size, most_scored, pack, share_out
from .rows import Shape, common_shapes, kept_shapes, round_up
from .store import Examples

Batches = Generator[Batch, None, None]
Numbered = Generator[tuple[int, Example], None, None]
"""Examples, each with its number in the data set."""

AHEAD = 2
"""Batches packed while the device is busy with another."""
LOOKED_AT = 256, 8192
"""The most batches, and the most examples in them, by which the shapes of batches are chosen.

Batches by step are looked at in the order of seed 0 whatever the seed is, also beyond the first
epoch: runs that differ in their seeds compile the same shapes."""


class Sizes(NamedTuple):
    """The sizes of the arrays of batches, each of which is compiled."""

    by_step: Sequence[Shape]
    in_order: Sequence[Shape]
    max_scored: int  # T, tokens


class Loader:
    """Batches of a data set; batch `step` depends on nothing but `step`.

    The epochs' orders are joined end to end and cut into batches, so that every example is seen
    once an epoch, or as often as its mixture says; none is padding and none is left over.

    Attributes:
      updates: how many batches are read by step.
      shapes_seen: shapes of the batches that the iterators have returned.
    """

    def __init__(
        self,
        examples: Examples,
        *,
        batch_size: int,
        microbatches: int,
        shards: int,
        row_length: int,
        shapes: int,
        seed: int,
        chunks: int = 1,
        scores: int = 0,
        cached: CachedStats | None = None,
        mixture: Mixture | None = None,
        held: Collection[int] | None = None,
        before: Sizes | None = None,
        updates: int | None = None,
        epochs: float = 1.0,
    ):
        """Check that the batch can be cut, and that `cached` belongs to the examples.

        Args:
          examples: the data set.
          batch_size: B, examples.
          microbatches: n.
          shards: S.
          row_length: L, tokens.
          shapes: how many shapes its batches have, but for some larger than those looked at.
          seed: seed of the order.
          chunks: parts of a cell whose logits exist one after another.
          scores: numbers that a reward head gives a response; 0: its tokens are scored.
          cached: statistics of the data set under frozen models.
          mixture: how many examples of each source an epoch has; None: all examples once.
          held: the shards that this process holds; None: all.
          before: sizes of the batches of similar data, used again where that costs less than a
            compilation.
          updates: how many batches are read by step; None: computed from `epochs`.
          epochs: passes over the data.

        Raises:
          UserError: B cannot be divided into microbatches and shards.
          ValueError: a cached statistic is not as long as the data set has scored tokens.
        """
        cell_size(batch_size, microbatches, shards)
        self.cached = cached or CachedStats()
        _check_cached(self.cached, examples)
        self.examples, self.batch_size, self.seed = examples, batch_size, seed
        self.microbatches, self.shards, self.row_length = microbatches, shards, row_length
        self.n_shapes = shapes
        self.chunks, self.scores, self.held = chunks, scores, held
        self.mixture = mixture or whole(len(examples))
        self.before = before
        self.updates = updates or self.steps(epochs)
        self.max_scored = examples.max_scored
        if before is not None and self.max_scored <= before.max_scored <= 2 * self.max_scored:
            self.max_scored = before.max_scored
        self.shapes_seen: set[Shape] = set()

    def steps(self, epochs: float) -> int:
        """The least number of batches that covers `epochs` passes over the data."""
        # The tolerance keeps 0.1 * 30 / 3 from being a hair above 1.
        return math.ceil(epochs * self.mixture.epoch / self.batch_size - 1e-9)

    def indices(self, step: int, seed: int | None = None) -> np.ndarray:
        """[B] the examples of batch `step`, counted from 0, for another seed if one is given."""

        def in_epoch(number: int) -> np.ndarray:
            return epoch_order(self.mixture, self.seed if seed is None else seed, number)

        return joined(in_epoch, self.mixture.epoch, step * self.batch_size, self.batch_size)

    def batch(self, step: int) -> Batch:
        """Batch `step` of the endless stream."""
        return self._pack_these(self.indices(step), self.shapes)

    def batches(self, start: int, stop: int) -> Batches:
        """Batches `start` to `stop - 1`, packed ahead in a thread that ends with the iterator."""
        return self._ahead(self.batch, range(start, stop))

    def streamed(self, examples: Numbered, start: int, stop: int) -> Batches:
        """Batches `start` to `stop - 1` of a stream whose first part is this loader's data set.

        A batch with longer responses than the first part has a T of its own.

        Args:
          examples: the stream from the first example of batch `start` on; it is closed at the end.
          start: the first batch.
          stop: the batch after the last.
        """

        def make(_: int) -> Batch:
            numbers, items = zip(*islice(examples, self.batch_size), strict=True)
            max_scored = max(self.max_scored, round_up(most_scored(items), 16))
            return self._pack(items, np.array(numbers), self.shapes, max_scored)

        try:
            yield from self._ahead(make, range(start, stop))
        finally:
            examples.close()

    def sequential(self, start: int = 0, stop: int | None = None) -> Batches:
        """Examples `start` to `stop - 1`, by default all, once each and in the order of the data.

        Padding fills the last batch.
        """
        stop = len(self.examples) if stop is None else stop

        def make(first: int) -> Batch:
            return self._pack_these(self._in_order(first, stop), self.shapes_in_order)

        return self._ahead(make, range(start, stop, self.batch_size))

    @cached_property
    def shapes(self) -> Sequence[Shape]:
        """Shapes of batches by step, chosen by the first batches of the order of seed 0."""
        before = self.before and self.before.by_step
        batches = (self.indices(step, seed=0) for step in count())
        return self._common_shapes(batches, before, self.updates)

    @cached_property
    def shapes_in_order(self) -> Sequence[Shape]:
        """Shapes of sequential batches."""
        n, before = len(self.examples), self.before and self.before.in_order
        starts = range(0, n, self.batch_size)
        return self._common_shapes((self._in_order(i, n) for i in starts), before, len(starts))

    @property
    def sizes(self) -> Sizes:
        """The sizes of the arrays of its batches."""
        return Sizes(self.shapes, self.shapes_in_order, self.max_scored)

    @property
    def sizes_in_order(self) -> Sizes:
        """The same of a loader whose batches are sequential alone."""
        return Sizes((), self.shapes_in_order, self.max_scored)

    def _common_shapes(
        self, batches: Iterable[np.ndarray], before: Sequence[Shape] | None, number: int
    ) -> Sequence[Shape]:
        most, examples = LOOKED_AT
        asked = [
            share_out(
                self._items(indices), self.microbatches * self.shards, self.chunks, self.scores
            )
            for indices in islice(batches, min(most, -(-examples // self.batch_size)))
        ]
        cells = [cells for _, cells in asked]
        own = common_shapes(cells, self.row_length, self.n_shapes)
        return own if not before else kept_shapes(cells, before, own, self.row_length, number)

    def _in_order(self, first: int, stop: int) -> np.ndarray:
        """[B] the examples from `first`; -1, padding, from `stop`."""
        indices = np.arange(first, first + self.batch_size)
        return np.where(indices < stop, indices, -1)

    def _items(self, indices: np.ndarray) -> list[Item | None]:
        return [self.examples.item(i) if i >= 0 else None for i in indices.tolist()]

    def _pack_these(self, indices: np.ndarray, shapes: Sequence[Shape]) -> Batch:
        return self._pack(self._items(indices), indices, shapes, self.max_scored)

    def _pack(
        self,
        items: Sequence[Item | None],
        indices: np.ndarray,
        shapes: Sequence[Shape],
        max_scored: int,
    ) -> Batch:
        return pack(
            items,
            indices,
            shapes=shapes,
            responses=self.examples.responses,
            microbatches=self.microbatches,
            shards=self.shards,
            chunks=self.chunks,
            row_length=self.row_length,
            max_scored=max_scored,
            scores=self.scores,
            cached=self.cached,
            offsets=self.examples.offsets,
            held=self.held,
        )

    def _ahead(self, make: Callable[[int], Batch], keys: Sequence[int]) -> Batches:
        pool = ThreadPoolExecutor(1, thread_name_prefix="pack")
        try:
            waiting = deque(pool.submit(make, key) for key in keys[:AHEAD])
            for i in range(len(keys)):
                if i + AHEAD < len(keys):
                    waiting.append(pool.submit(make, keys[i + AHEAD]))
                batch = waiting.popleft().result()
                self.shapes_seen.add(Shape(*batch.ids.shape[2:], *batch.source.shape[2:]))
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)


def _check_cached(cached: CachedStats, examples: Examples) -> None:
    """Refuse cached statistics that have another length than the scored tokens of a data set."""
    for field, stats in (("ref", cached.ref), ("start", cached.start)):
        for name, values in stats.items():
            if values.shape != (examples.offsets[-1],):
                raise ValueError(
                    f"{field}['{name}'] has shape {values.shape}; the data set has "
                    f"{examples.offsets[-1]} scored tokens"
                )
