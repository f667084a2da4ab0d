"""Scored answers to training data, with counts of what was left out."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.fields import Raw
from ..errors import UserError
from ..settings.pair import Pair, problems
from .answers import Answers, read_answers
from .pair_methods import METHODS, Lost, Row


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What became of the prompts and their answers."""

    prompts: int
    """Rows read."""
    used: int
    """Prompts with a row written."""
    rows: int
    """Rows written."""
    answers: int
    """Answers read."""
    dropped_prompts: Mapping[str, int]
    """Prompts without a row, by reason."""
    dropped_answers: Mapping[str, int]
    """Answers that were left out, by reason."""
    dropped_pairs: Mapping[str, int]
    """Pairs that were left out, by reason."""
    measured: Mapping[str, float]
    """Numbers that a method found: the threshold of a quantile, the accepted share of draws."""

    def lines(self) -> list[str]:
        """The counts as lines of text."""
        found = [f"{self.prompts:,} prompts: {self.used:,} used, {self.rows:,} rows written"]
        for kind in REASONS:
            dropped: Mapping[str, int] = getattr(self, f"dropped_{kind}")
            found += [f"{kind} dropped, {reason}: {n:,}" for reason, n in dropped.items()]
        return found + [f"{name}: {value:.6g}" for name, value in self.measured.items()]

    def as_dict(self) -> dict[str, Any]:
        """The counts as plain values, for JSON."""
        return dataclasses.asdict(self)


REASONS = {
    "prompts": ("too few answers", "nothing left"),
    "answers": (
        *("unfinished", "empty", "repeated"),
        *("below the threshold", "between the thresholds"),
    ),
    "pairs": ("tie", "margin", "uncertain", "over the most"),
}
"""The reasons, in the order of the checks."""


def pair_rows(
    rows: Iterable[tuple[str, Raw]], settings: Pair, seed: int
) -> tuple[list[Row], Counts]:
    """Make training data of scored answers.

    The random choices for a prompt depend on the seed and the number of its row alone.

    Args:
      rows: (where, row) of every prompt: prompt, responses, scores and further columns.
      settings: the method and its options.
      seed: seed of the random choices, 0 or more.

    Returns:
      The rows of the data, in the order of their prompts, and the counts.

    Raises:
      UserError: there is no row, a row is broken, or an option does not fit the method.
    """
    if wrong := problems(settings):
        raise UserError("\n".join(f"pair.{name}: {said}" for name, said in wrong.items()))
    method, lost = METHODS[settings.how], Lost(Counter(), Counter(), Counter(), Counter())
    found = [
        read_answers(
            raw,
            where,
            unfinished=settings.unfinished == "keep",
            repeats=method.repeats,
            dropped=lost.answers,
        )
        for where, raw in rows
    ]
    if not found:
        raise UserError(f"{settings.data}: no rows; give a file with scored answers")
    settings, measured = _measured(settings, found)
    made: list[list[Row]] = []
    for i, answers in enumerate(found):
        enough = len(answers.pool) >= method.least(settings)
        rng = np.random.default_rng(np.random.SeedSequence([seed, i]))
        made.append(method.rows(answers, settings, rng, lost) if enough else [])
        if not made[-1]:
            lost.prompts["nothing left" if enough else "too few answers"] += 1
    if lost.draws["drawn"]:
        measured["accepted share"] = lost.draws["accepted"] / lost.draws["drawn"]
    return [row for part in made for row in part], _counts(found, made, lost, measured)


def _counts(
    found: list[Answers], made: list[list[Row]], lost: Lost, measured: dict[str, float]
) -> Counts:
    dropped = {
        f"dropped_{kind}": {reason: n for reason in reasons if (n := getattr(lost, kind)[reason])}
        for kind, reasons in REASONS.items()
    }
    return Counts(
        prompts=len(found),
        used=sum(map(bool, made)),
        rows=sum(map(len, made)),
        answers=sum(len(answers.texts) for answers in found),
        measured=measured,
        **dropped,
    )


def _measured(settings: Pair, found: list[Answers]) -> tuple[Pair, dict[str, float]]:
    """The settings with the values that come from the whole file, and these values."""
    if settings.how == "labels" and settings.quantile is not None:
        scores = np.concatenate([answers.pool_scores for answers in found])
        if not len(scores):
            raise UserError(f"{settings.data}: no answer to take the quantile of; all are left out")
        at = {"threshold": settings.quantile, "upper": settings.upper}
        values = {k: float(np.quantile(scores, q)) for k, q in at.items() if q is not None}
        return dataclasses.replace(settings, quantile=None, **values), values
    if settings.how == "ranked" and settings.keep is None:
        most = max(2, *(len(answers.pool) for answers in found))
        return dataclasses.replace(settings, keep=most), {"answers of a row": most}
    return settings, {}
