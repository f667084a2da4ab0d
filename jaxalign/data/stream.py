"""A data set that is tokenized, part by part, while it is trained on; no tokens are kept."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from ..errors import UserError
from ..sealed import sealed
from ..settings import Data
from .examples import RowCounts
from .fields import Raw
from .loader import Numbered
from .mixture import order
from .store import ROWS, Examples, Part
from .tokenize import Job, Rows, checked, in_parts, tokenize_part


class Known(NamedTuple):
    """What a run keeps of the parts of its stream, in `stream.json`."""

    sizes: list[int]
    """Examples of the first parts."""
    whole: bool
    """Whether these are all parts."""
    counts: RowCounts | None
    """What became of their rows; none: no part is known."""


class _Shuffled(NamedTuple):
    """A part of a pass."""

    first: int  # the number of its first example in the data set
    part: Part
    order: np.ndarray  # of its examples, those that are left of it


@dataclasses.dataclass(frozen=True)
class Stream:
    """The endless stream of a data set's examples: the same for the same data and seed.

    Parts are in the order of the data in every pass; each is shuffled by itself, in another order
    in each pass. No more than the first part, the current one and the next are in memory.
    """

    job: Job
    rows: Callable[[], Iterable[tuple[str, Raw]]]
    """Begins to read the data set."""
    where: str
    """The name of the data set in messages."""
    first: Examples
    """The examples of the first part."""
    seed: int
    check: Callable[[Examples], None]
    """Raises a UserError for a part that the model or the objective cannot use."""
    kept: Known | None
    """What an earlier process kept of the parts, so that whole parts are skipped; or none."""
    keep: Callable[[str], object]
    """Keeps the sizes and row counts of parts, as JSON text, for a report and to resume."""

    def examples(self, place: int) -> Numbered:
        """The examples of the stream from a place on; the next part is tokenized ahead.

        Raises:
          UserError: a part does not fit, or the data have changed since an earlier process.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="tokenize") as pool:
            parts = self._parts(place)
            coming = pool.submit(next, parts)
            while True:
                shuffled = coming.result()
                coming = pool.submit(next, parts)
                for i in shuffled.order.tolist():
                    yield shuffled.first + i, shuffled.part.example(i)

    def _parts(self, place: int) -> Iterator[_Shuffled]:
        """The parts of all passes, from the one with this place of the stream on."""
        sizes = _Sizes(self.kept, self.keep, self.where)
        begun = place // sum(sizes.known) if sizes.whole else 0
        done = begun * sum(sizes.known)
        for number_of_pass in itertools.count(begun):
            first = count = 0
            for number, rows in enumerate(in_parts(self.rows(), self.job.settings.limit)):
                size = sizes.known[number] if number < len(sizes.known) else None
                if size is None or done + size > place:
                    part, counts = self._part(number, rows)
                    size = counts.kept
                    sizes.add(number, counts)
                    if part and done + size > place:
                        shuffled = order(self.seed, number_of_pass, size, number)
                        yield _Shuffled(first, part, shuffled[max(place - done, 0) :])
                first, done, count = first + size, done + size, number + 1
            sizes.end(count)

    def _part(self, number: int, rows: Rows) -> tuple[Part | None, RowCounts]:
        if number == 0:
            return self.first.parts[0], self.first.counts
        part, counts = tokenize_part(self.job, rows)
        if part:
            checked((self.first.parts[0], part), counts, self.where)
            self.check(Examples((part,), counts))
        return part, counts


def only_first(data: Data) -> Data:
    """The settings with which to read the first part of a data set."""
    return dataclasses.replace(data, limit=min(data.limit or ROWS, ROWS))


class _Sizes:
    """The parts of a data set, as far as they are known.

    Attributes:
      known: sizes of the first parts.
      counts: what became of their rows; None: no part is known.
      whole: whether these are all parts.
    """

    def __init__(self, kept: Known | None, keep: Callable[[str], object], where: str):
        self._keep, self._where = keep, where
        self.known = list(kept.sizes) if kept else []
        self.counts = kept.counts if kept else None
        self.whole = kept is not None and kept.whole

    def add(self, number: int, counts: RowCounts) -> None:
        """Keep the row counts of a part, or compare its size with the one that is known."""
        size = counts.kept
        if number < len(self.known):
            self._require(self.known[number] == size, f"part {number} has {size} examples")
        else:
            self._require(not self.whole, f"it has more than {len(self.known)} parts")
            self.known.append(size)
            self.counts = RowCounts.merged([self.counts, counts] if self.counts else [counts])
            self._write()

    def end(self, count: int) -> None:
        """Keep the number of parts, or compare it with the one that is known."""
        self._require(count == len(self.known), f"it has {count} parts")
        if not self.whole:
            self.whole = True
            self._write()

    def _require(self, same: bool, found: str) -> None:
        if not same:
            raise UserError(
                f"{self._where}: {found}, unlike before, so the run would go on with other "
                "batches; restore the data, or train in another run.dir"
            )

    def _write(self) -> None:
        counts = self.counts and dataclasses.asdict(self.counts)
        self._keep(sealed({"sizes": self.known, "whole": self.whole, "counts": counts}))
