"""Containers that cross module boundaries.

Axes, in every shape of the library:

    B   examples                           n   microbatches
    R   responses of an example            S   shards of the batch
    N   sequences, or items of a list      b   examples of a cell, B / (n S)
    T   scored positions of a response     H   query heads
    K   packed rows                        Hk  key heads
    L   length of a packed row             G   query heads per key head, H / Hk
    M   scored positions of a chunk        C   width of a head; c, of any tensor like it
    D   width of the model                 Q   places of a block of attention
    V   vocabulary, or scores of a head    P   tokens of a prompt

Other axes are words: chunks, layers, rank. Log-probabilities are in nats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, TypeVar, cast

import flax.struct
import jax
import jax.numpy as jnp

from . import layouts
from .layouts import Layout

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


class Responses:
    """Statistics of the responses of a batch, by name: the base of the layouts below."""

    LAYOUT: ClassVar[Layout]


@flax.struct.dataclass
class Demos(Responses):
    """One response per example, nothing compared with it."""

    LAYOUT: ClassVar[Layout] = layouts.DEMOS
    response: SequenceStats  # [B]


@flax.struct.dataclass
class Pairs(Responses):
    """A preferred and a dispreferred response to the same prompt."""

    LAYOUT: ClassVar[Layout] = layouts.PAIRS
    chosen: SequenceStats  # [B]
    rejected: SequenceStats  # [B]


@flax.struct.dataclass
class Labeled(Responses):
    """One response per example, desirable where the column `label` is 1, undesirable where 0."""

    LAYOUT: ClassVar[Layout] = layouts.LABELED
    response: SequenceStats  # [B]


@flax.struct.dataclass
class Mismatched(Responses):
    """A labeled response, and a response to another prompt used to estimate a KL."""

    LAYOUT: ClassVar[Layout] = layouts.MISMATCHED
    response: SequenceStats  # [B]
    mismatched: SequenceStats  # [B], no gradient


@flax.struct.dataclass
class Forget(Responses):
    """One response per example, to be made less likely."""

    LAYOUT: ClassVar[Layout] = layouts.FORGET
    response: SequenceStats  # [B]


@flax.struct.dataclass
class Ranked(Responses):
    """R responses to the same prompt, compared by a column `scores` or given best first."""

    LAYOUT: ClassVar[Layout] = layouts.RANKED
    responses: SequenceStats  # [B, R]


@flax.struct.dataclass
class Rationales(Responses):
    """A pair, and the reason why the chosen response is better, given both."""

    LAYOUT: ClassVar[Layout] = layouts.RATIONALES
    chosen: SequenceStats  # [B]
    rejected: SequenceStats  # [B]
    rationale: SequenceStats  # [B]


@flax.struct.dataclass
class Revised(Responses):
    """A pair, and each response as a revision of each: `a_after_b` is a, given x and b."""

    LAYOUT: ClassVar[Layout] = layouts.REVISED
    chosen: SequenceStats  # [B], as the rest
    rejected: SequenceStats
    chosen_after_rejected: SequenceStats
    rejected_after_chosen: SequenceStats
    rejected_after_rejected: SequenceStats
    chosen_after_chosen: SequenceStats


@flax.struct.dataclass
class Dispreferred(Responses):
    """A bad response, and R responses that a model gave by itself."""

    LAYOUT: ClassVar[Layout] = layouts.DISPREFERRED
    rejected: SequenceStats  # [B]
    samples: SequenceStats  # [B, R]


R = TypeVar("R", bound=Responses)


def select_rows(data: type[R], stats: SequenceStats) -> R:
    """Statistics with leading axes [B, R] -> an instance of `data`, frozen responses stopped."""
    layout, found = data.LAYOUT, {}
    for r, name in enumerate(layout.responses):
        last = layout.many and r == len(layout.responses) - 1
        at = slice(r, None) if last else r
        found[name] = jax.tree.map(lambda x, at=at: x[:, at], stats)
        if name in layout.frozen:
            found[name] = jax.lax.stop_gradient(found[name])
    return cast(Callable[..., R], data)(**found)


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

    def mean(self, weight: Array | None = None) -> Array:
        """The loss of these examples, []: the sum over terms of total / count.

        Args:
          weight: [B] weights of the examples; entries with weight 0 are ignored, even NaN; None:
            all are 1.
        """

        def summed(values: Array) -> Array:
            if weight is None:
                return values.sum()
            return jnp.where(weight > 0, weight * values, 0.0).sum()

        means = (summed(t.total) / jnp.maximum(summed(t.count), 1e-30) for t in self.terms)
        return sum(means, jnp.float32(0.0))


def per_example(values: Array) -> Loss:
    """[B] values -> their average over the examples of the batch."""
    return Loss((Mean(values, jnp.ones_like(values)),))


def per_token(totals: Array, lengths: Array) -> Loss:
    """[B] sums over tokens, [B] token counts -> the average over all tokens of the batch."""
    return Loss((Mean(totals, lengths),))
