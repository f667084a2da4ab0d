"""Whether a model's own answers move where held-out pairs do not show it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .text import short

FACTOR, SLACK = 2.0, 1.0
"""The divergence of own answers may rise by FACTOR * (SLACK nats + the largest held-out shift)."""
RISE, ERRORS = 0.1, 3.0
"""A share of own answers may rise by RISE, and by as many standard errors of the difference."""
SHARES = {
    "samples/unfinished": "fewer answers end",
    "samples/repetition": "answers repeat themselves",
}
"""Metrics that are shares, and what a rise means."""
REMEDY = (
    "read some answers (`jaxalign generate`); lower the learning rate, train for fewer updates, "
    "or export an earlier update (`keep_best`)"
)


class Change(NamedTuple):
    """A held-out metric at its first and at its last evaluation."""

    first: float
    last: float
    since: int  # the update of the first
    at: int  # the update of the last

    @property
    def rise(self) -> float:
        """The last value minus the first."""
        return self.last - self.first

    def __str__(self) -> str:
        return f"rose from {short(self.first)} at update {self.since:,} to {short(self.last)}"


def drift(lines: Sequence[Mapping[str, Any]], answers: int) -> dict[str, str]:
    """Warnings about a stage whose evaluations draw answers.

    Args:
      lines: lines of its metrics.jsonl, oldest first.
      answers: the number of own answers of an evaluation.

    Returns:
      A warning for each metric that gives cause, by its name.
    """
    changes = _changes(lines)
    found: dict[str, str] = {}
    shifts = {name: abs(c.rise) for name, c in changes.items() if "logps/" in name}
    kl = changes.get("samples/kl")
    if kl is not None and shifts:
        widest = max(shifts, key=lambda name: shifts[name])
        if kl.rise > FACTOR * (SLACK + shifts[widest]):
            found["samples/kl"] = (
                f"samples/kl {kl} nats at update {kl.at:,}, and no held-out log-probability "
                f"shifted by more than {short(shifts[widest])} ({widest}): the answers move where "
                f"the held-out data does not show it; {REMEDY}"
            )
    for name, meaning in SHARES.items():
        change = changes.get(name)
        if change and change.rise > max(RISE, ERRORS * _error(change, answers)):
            found[name] = f"{name} {change} at update {change.at:,}: {meaning}; {REMEDY}"
    return found


def _error(change: Change, answers: int) -> float:
    """The standard error of the difference of two shares of independent answers.

    It is exact where an answer counts 0 or 1, and else the largest that it can be.
    """
    spread = sum(share * (1 - share) for share in (change.first, change.last))
    return math.sqrt(max(spread, 0.0) / (answers - 1)) if answers > 1 else math.inf


def _changes(lines: Sequence[Mapping[str, Any]]) -> dict[str, Change]:
    """The first and the last finite value of each held-out metric, by its name."""
    found: dict[str, Change] = {}
    for line in lines:
        for key, value in line.items():
            name = key.removeprefix("eval/")
            if name != key and math.isfinite(value):
                first = found.get(name, Change(value, value, line["step"], line["step"]))
                found[name] = first._replace(last=value, at=line["step"])
    return found
