"""What becomes of the rows of a data set, counted as they pass."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from .examples import RowCounts


class Reasons(Counter[str]):
    """How many rows each reason applies to, and the first of them."""

    def __init__(self) -> None:
        """No rows yet."""
        super().__init__()
        self.first: dict[str, str] = {}

    def add(self, reason: str, where: str) -> None:
        """Count a row."""
        self[reason] += 1
        self.first.setdefault(reason, where)


@dataclasses.dataclass
class Tally:
    """Counts of the rows that were dropped, cut, or kept with something to be said."""

    dropped: Reasons = dataclasses.field(default_factory=Reasons)
    noted: Reasons = dataclasses.field(default_factory=Reasons)
    prompt_cut: int = 0
    response_cut: Counter[str] = dataclasses.field(default_factory=Counter)

    @property
    def cuts(self) -> tuple[int, Counter[str]]:
        """The counts of prompts and responses that were cut."""
        return self.prompt_cut, self.response_cut.copy()

    @cuts.setter
    def cuts(self, counts: tuple[int, Counter[str]]) -> None:
        self.prompt_cut, self.response_cut = counts

    def counts(self, kept: int, names: Sequence[str]) -> RowCounts:
        """The counts of a data set with this many examples and these names of responses."""
        cut = {name: self.response_cut[name] for name in names}
        first = self.dropped.first | self.noted.first
        return RowCounts(kept, dict(self.dropped), self.prompt_cut, cut, dict(self.noted), first)
