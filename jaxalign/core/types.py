"""Containers that cross module boundaries.

Axes, everywhere: B examples, R responses per example, N = B * R sequences, T scored positions of a
response, K packed rows, L row length, M scored positions of the batch, D width, V vocabulary.
Log-probabilities are in nats.
"""

from __future__ import annotations

from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp

Array = jax.Array
Metrics = dict[str, Array]


@flax.struct.dataclass
class SequenceStats:
    """What one model says about a set of responses. Leading axes are the caller's."""

    logp: Array  # [...]     sum of log p(y_t | x, y_<t) over scored tokens, nats
    length: Array  # [...]     scored tokens
    mask: Array  # [..., T]  1.0 on scored targets, else 0.0
    token: dict[str, Array]  # {statistic: [..., T]}, 0.0 where mask is 0

    @property
    def avg_logp(self) -> Array:
        """Nats per token; 0 for an empty response."""
        return self.logp / jnp.maximum(self.length, 1.0)


@flax.struct.dataclass
class Demos:
    """One response per example, nothing compared with it."""

    ROWS: ClassVar[tuple[str, ...]] = ("response",)
    FROZEN: ClassVar[tuple[str, ...]] = ()
    response: SequenceStats  # [B]


@flax.struct.dataclass
class Pairs:
    """A preferred and a dispreferred response to the same prompt."""

    ROWS: ClassVar[tuple[str, ...]] = ("chosen", "rejected")
    FROZEN: ClassVar[tuple[str, ...]] = ()
    chosen: SequenceStats  # [B]
    rejected: SequenceStats  # [B]


@flax.struct.dataclass
class Labeled:
    """One response per example, desirable where the column `label` is 1, undesirable where 0."""

    ROWS: ClassVar[tuple[str, ...]] = ("response",)
    FROZEN: ClassVar[tuple[str, ...]] = ()
    response: SequenceStats  # [B]


@flax.struct.dataclass
class Mismatched:
    """A labelled response, and a response to another prompt used to estimate a KL."""

    ROWS: ClassVar[tuple[str, ...]] = ("response", "mismatched")
    FROZEN: ClassVar[tuple[str, ...]] = ("mismatched",)
    response: SequenceStats  # [B]
    mismatched: SequenceStats  # [B], no gradient


@flax.struct.dataclass
class Forget:
    """One response per example, to be made less likely."""

    ROWS: ClassVar[tuple[str, ...]] = ("response",)
    FROZEN: ClassVar[tuple[str, ...]] = ()
    response: SequenceStats  # [B]


@flax.struct.dataclass
class Ranked:
    """K responses to the same prompt, compared by a column `scores` or given best first."""

    ROWS: ClassVar[tuple[str, ...]] = ("responses",)
    FROZEN: ClassVar[tuple[str, ...]] = ()
    responses: SequenceStats  # [B, K]


@flax.struct.dataclass
class Rationales:
    """A pair, and the reason why the chosen response is better, given both."""

    ROWS: ClassVar[tuple[str, ...]] = ("chosen", "rejected", "rationale")
    FROZEN: ClassVar[tuple[str, ...]] = ()
    chosen: SequenceStats  # [B]
    rejected: SequenceStats  # [B]
    rationale: SequenceStats  # [B]


@flax.struct.dataclass
class Revised:
    """A pair, and each response as a revision of each: `a_after_b` is a, given x and b."""

    ROWS: ClassVar[tuple[str, ...]] = (
        "chosen",
        "rejected",
        "chosen_after_rejected",
        "rejected_after_chosen",
        "rejected_after_rejected",
        "chosen_after_chosen",
    )
    FROZEN: ClassVar[tuple[str, ...]] = ()
    chosen: SequenceStats  # [B], as the rest
    rejected: SequenceStats
    chosen_after_rejected: SequenceStats
    rejected_after_chosen: SequenceStats
    rejected_after_rejected: SequenceStats
    chosen_after_chosen: SequenceStats


@flax.struct.dataclass
class Dispreferred:
    """A bad response, and K responses that a model gave by itself."""

    ROWS: ClassVar[tuple[str, ...]] = ("rejected", "samples")
    FROZEN: ClassVar[tuple[str, ...]] = ()
    rejected: SequenceStats  # [B]
    samples: SequenceStats  # [B, K]


MANY = (Ranked, Dispreferred)
"""Layouts whose last row is K responses, [B, K]; of the others each is one, [B]."""


def select_rows(layout: Any, stats: SequenceStats) -> Any:
    """Statistics with leading axes [B, R] -> an instance of `layout`, frozen rows stopped."""
    rows = {n: jax.tree.map(lambda x, i=i: x[:, i], stats) for i, n in enumerate(layout.ROWS)}
    if layout in MANY:
        first = len(layout.ROWS) - 1
        rows[layout.ROWS[-1]] = jax.tree.map(lambda x: x[:, first:], stats)
    for name in layout.FROZEN:
        rows[name] = jax.lax.stop_gradient(rows[name])
    return layout(**rows)


@flax.struct.dataclass
class Mean:
    """total / count, each summed over the whole global batch before dividing."""

    total: Array  # [B]
    count: Array  # [B]; never depends on the policy


@flax.struct.dataclass
class Loss:
    """A weighted sum of means: `per_token(nll, n) + lam * per_example(x)`."""

    terms: tuple[Mean, ...]

    def __add__(self, other: Loss) -> Loss:
        return Loss(self.terms + other.terms)

    def __rmul__(self, scale: float | Array) -> Loss:
        return Loss(tuple(Mean(scale * t.total, t.count) for t in self.terms))


def per_example(values: Array) -> Loss:
    """[B] values -> their average over the examples of the batch."""
    return Loss((Mean(values, jnp.ones_like(values)),))


def per_token(totals: Array, lengths: Array) -> Loss:
    """[B] sums over tokens, [B] token counts -> the average over all tokens of the batch."""
    return Loss((Mean(totals, lengths),))
