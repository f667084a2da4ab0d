"""Settings that read the evaluations of a stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .types import Text, WholeNumber


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
