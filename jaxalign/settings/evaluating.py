"""Settings that read the evaluations of a stage: the exported update, answers of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .types import Count, Text, WholeNumber


@dataclass(frozen=True, kw_only=True)
class KeepBest:
    """Export the update with the best held-out metric, and stop when no better one comes."""

    metric: Text
    """Held-out metric, as in metrics.jsonl without `eval/`: loss, rewards/accuracies, ...; of a
    stage with terms, dpo/loss."""
    want: Literal["lowest", "highest"] = "lowest"
    """Best value of the metric."""
    patience: WholeNumber = 0
    """Stop after this many evaluations in a row without a better value; 0: never stop early."""


@dataclass(frozen=True, kw_only=True)
class EvalSamples:
    """Answers of the model in training, drawn at temperature 1 at each evaluation."""

    count: Count = 64
    """Number of prompts, chosen by the seed of the run; each gets one answer."""
    max_new: Count = 256
    """Maximum number of new tokens per answer."""
    prompts: Text | None = None
    """A data file with a column `prompt`, `messages` or `conversations`; none: the prompts of the
    held-out data."""
