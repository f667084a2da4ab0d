"""The synthetic data of the quickstart."""

from __future__ import annotations

from dataclasses import dataclass

from .types import Count


@dataclass(frozen=True, kw_only=True)
class World:
    """Synthetic questions and answers for the quickstart, written to the folder of the run."""

    seed: int = 0
    """Seed of the questions and answers."""
    train: Count = 4096
    """Number of preference pairs for training."""
    held_out: Count = 256
    """Number of held-out preference pairs."""
