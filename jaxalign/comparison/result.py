"""The result of a comparison: what every model has, and each model against the baseline."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from .measures import Controlled, Measured, Rate

MEASURES = {
    "score": "score of an answer",
    "tokens": "length, tokens",
    "without_end": "share without an end",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "kl": "KL to the reference, nats an answer",
    "change_chosen": "change of chosen, nats a response",
    "change_rejected": "change of rejected, nats a response",
    "ranking": "ranking accuracy",
    "reward_accuracy": "reward accuracy",
}
"""The words for each measure of a model."""


class ModelResult(NamedTuple):
    """The measures of one model."""

    name: str
    path: str
    """As it was given."""
    measures: Mapping[str, Measured]
    """By the names of `MEASURES`."""


class PairResult(NamedTuple):
    """A model against the baseline."""

    name: str
    """The name of the model."""
    win_rate: Rate
    """Share of wins, a tie half a win."""
    controlled: Controlled
    """The win rate at equal length."""
    difference: Measured
    """Score minus the score of the baseline."""


class Shown(NamedTuple):
    """A prompt with the first answer of every model, for the page."""

    prompt: str
    answers: tuple[tuple[str, float], ...]
    """The answer of each model, and its score."""


@dataclasses.dataclass(frozen=True)
class Compared:
    """Models compared by their answers to the same prompts; the first is the baseline."""

    models: tuple[ModelResult, ...]
    pairs: tuple[PairResult, ...]
    """One for each model but the first."""
    prompts: int
    answers: int
    """Answers of a model to each prompt."""
    settings: Mapping[str, Any]
    """What the result depends on, by name."""
    shown: tuple[Shown, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """All numbers as plain values; null where there is none."""
        return {
            "baseline": self.models[0].name,
            "prompts": self.prompts,
            "answers": self.answers,
            "settings": dict(self.settings),
            "models": [
                {
                    "name": m.name,
                    "path": m.path,
                    "measures": {k: _plain(v._asdict()) for k, v in m.measures.items()},
                }
                for m in self.models
            ],
            "pairs": [
                {
                    "name": pair.name,
                    "win_rate": _plain(pair.win_rate._asdict()),
                    "length_controlled": _plain(pair.controlled.rate._asdict()),
                    "length_effect": _number(pair.controlled.length_effect),
                    "difference": _plain(pair.difference._asdict()),
                }
                for pair in self.pairs
            ],
        }

    def to_csv(self) -> str:
        """A row for each model; the columns of pairs are empty for the baseline."""
        names = list(self.models[0].measures)
        pairs = {pair.name: pair for pair in self.pairs}
        head = ["model", "path", *(x for n in names for x in (n, f"{n}_error"))]
        for rate in ("win_rate", "length_controlled"):
            head += [rate, f"{rate}_low", f"{rate}_high"]
        head += ["length_effect", "difference", "difference_error"]
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(head)
        for model in self.models:
            found = [x for n in names for x in model.measures[n].estimate]
            if (pair := pairs.get(model.name)) is not None:
                found += [*pair.win_rate, *pair.controlled.rate, pair.controlled.length_effect]
                found += pair.difference.estimate
            cells = ["" if math.isnan(x) else repr(x) for x in found]
            empty = [""] * (len(head) - 2 - len(cells))
            table.writerow([model.name, model.path, *cells, *empty])
        return text.getvalue()


def _plain(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _number(value) for name, value in values.items()}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
