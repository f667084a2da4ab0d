"""Answers to the same prompts before and after training, with their true rewards if known."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..files import whole_file

FILE = "samples.json"  # in the folder of the run
SHOWN = 5  # samples in a report


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean and its standard error; the error of a single value is unknown: nan."""

    mean: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """The mean of independent values [n], and their standard deviation over the root of n."""
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        return cls(float(np.mean(values)), spread / math.sqrt(len(values)))

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.error:.3f}"

    @property
    def signed(self) -> str:
        """As a change, with its sign."""
        return f"{self.mean:+.3f} ± {self.error:.3f}"


@dataclasses.dataclass(frozen=True)
class Sample:
    """The answers to one prompt, and their true rewards if there is a way to know them."""

    prompt: str
    before: str
    after: str
    reward_before: float | None = None
    reward_after: float | None = None

    @property
    def rewards(self) -> str:
        """Both rewards in one text; empty if unknown."""
        if self.reward_before is None or self.reward_after is None:
            return ""
        return f"{self.reward_before:.2f} → {self.reward_after:.2f}"


@dataclasses.dataclass(frozen=True)
class Summary:
    """How rewards changed: estimates over prompts, each with its standard error."""

    before: Estimate  # true reward before training
    after: Estimate  # true reward after training
    gain: Estimate  # after - before, paired by prompt
    win_rate: Estimate  # share of prompts with the better answer after; a tie counts half


@dataclasses.dataclass(frozen=True)
class Measure:
    """A number of both models: a row (name, before, after, change) of texts to show."""

    name: str
    before: str
    after: str
    change: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The models of two stages on the same prompts."""

    before: str  # name of a stage
    after: str
    samples: tuple[Sample, ...]  # one per prompt
    measures: tuple[Measure, ...] = ()  # further numbers
    seconds: float = 0.0  # spent on sampling and measuring

    def summary(self) -> Summary | None:
        """The change of the true reward; None if rewards are unknown."""
        pairs = [
            (s.reward_before, s.reward_after)
            for s in self.samples
            if s.reward_before is not None and s.reward_after is not None
        ]
        if not pairs or len(pairs) < len(self.samples):
            return None
        gains = [after - before for before, after in pairs]
        return Summary(
            before=Estimate.of([before for before, _ in pairs]),
            after=Estimate.of([after for _, after in pairs]),
            gain=Estimate.of(gains),
            win_rate=Estimate.of([0.5 + 0.5 * float(np.sign(g)) for g in gains]),
        )

    def rows(self) -> list[Measure]:
        """Every number to show."""
        summary = self.summary()
        if summary is None:
            return list(self.measures)
        before, after = str(summary.before), str(summary.after)
        return [
            Measure("true reward of an answer", before, after, summary.gain.signed),
            Measure("win rate (a tie is half)", "", str(summary.win_rate), ""),
            *self.measures,
        ]


def with_rewards(
    prompts: Sequence[str],
    before: Sequence[str],
    after: Sequence[str],
    reward: Callable[[str, str], float],
) -> tuple[Sample, ...]:
    """The answers of two models to the same prompts [n], scored by a known reward.

    Raises:
      UserError: there are no prompts.
      ValueError: the three lists differ in length.
    """
    if not prompts:
        raise UserError("report: got no prompts, wanted at least one; give held-out data")
    return tuple(
        Sample(p, b, a, reward(p, b), reward(p, a))
        for p, b, a in zip(prompts, before, after, strict=True)
    )


def write_samples(folder: Path, comparison: Comparison) -> None:
    """Write `samples.json` to the folder of a run, for the report."""
    text = json.dumps(dataclasses.asdict(comparison), indent=1)
    with whole_file(folder / FILE) as file:
        file.write(text.encode())


def parse_samples(raw: Any) -> Comparison:
    """The content of a `samples.json`.

    Raises:
      ValueError, TypeError, KeyError: it is not as `write_samples` writes it.
    """
    samples = tuple(
        Sample(
            prompt=str(s["prompt"]),
            before=str(s["before"]),
            after=str(s["after"]),
            reward_before=_number(s.get("reward_before")),
            reward_after=_number(s.get("reward_after")),
        )
        for s in raw["samples"]
    )
    names = [field.name for field in dataclasses.fields(Measure)]
    measures = tuple(Measure(*(str(m[name]) for name in names)) for m in raw.get("measures", ()))
    seconds = float(raw.get("seconds", 0.0))
    return Comparison(str(raw["before"]), str(raw["after"]), samples, measures, seconds)


def _number(value: Any) -> float | None:
    number = None if value is None else float(value)
    if number is not None and not math.isfinite(number):
        raise ValueError("a reward is not finite")
    return number
