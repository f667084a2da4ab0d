"""Token statistics: functions of one row of logits, evaluated inside the head."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from numpy.typing import NDArray

from .numerics import log1mexp
from .types import Array, SequenceStats

Numbers = Array | NDArray[Any] | Sequence[float] | Sequence[Sequence[float]]
"""An array, or lists that make one."""

PARTS = 256
"""Most parts of a row of logits whose maxima are taken one by one."""


class LogitRow(NamedTuple):
    """Rows of logits and what every statistic of them may share."""

    logits: Array  # [..., V] float32
    target: Array  # [...] int
    log_odds: Array  # [...] of the target, nats
    ref: Array | None  # [..., V] float32 logits of the reference, constant; for joint statistics
    head: Array | None  # [D, V] the unembedding that gave the logits

    @classmethod
    def of(
        cls, logits: Array, target: Array, ref: Array | None = None, head: Array | None = None
    ) -> LogitRow:
        """Rows with the log-odds of their targets."""
        return cls(logits, target, log_odds(logits, target), ref, head)


@dataclasses.dataclass(frozen=True)
class TokenStat:
    """A named statistic of a token, `fn(row) -> [...]`."""

    name: str
    fn: Callable[[LogitRow], Array]
    joint: bool = False  # whether it reads the logits of the reference too, which must run live

    def __call__(
        self, logits: Array, target: Array, ref: Array | None = None, head: Array | None = None
    ) -> Array:
        """[..., V] float32 logits, [...] targets, what else the statistic reads -> [...]."""
        return self.fn(LogitRow.of(logits, target, ref, head))


@dataclasses.dataclass(frozen=True)
class LayerStat:
    """A named statistic of what the reference's layers make of a token, `fn(means, mask)`.

    Of a response: `means` [..., N, T] float32, the mean over the width of what each of N layers
    hands to the next, at the position that predicts the token; `mask` [..., T] -> [..., T].
    """

    name: str
    fn: Callable[[Array, Array], Array]


@jax.custom_vjp
def log_odds(logits: Array, target: Array) -> Array:
    """Log-odds of the target, m = z_y - logsumexp of the other logits; [...], nats.

    From it log p = -softplus(-m) and log(1 - p) = -softplus(m), both accurate at both ends.
    """
    return _log_odds(logits, target)[0]


def _is_target(logits: Array, target: Array) -> Array:
    """True at the logits of the targets, [..., V] bool."""
    return jax.nn.one_hot(target, logits.shape[-1], dtype=bool)


def _most_of_others(logits: Array, target: Array) -> Array:
    """The greatest logit but the target's, [...]."""
    return jnp.where(_is_target(logits, target), -jnp.inf, logits).max(-1)


def _most_of_others_by_parts(logits: Array, target: Array) -> Array:
    """The same, masking only the part of the row that contains the target.

    XLA:CPU writes what is masked to memory before it takes the maximum.
    """
    size = logits.shape[-1]
    count = math.gcd(size, PARTS)
    parts = logits.reshape(*logits.shape[:-1], count, size // count)
    own, place = jnp.divmod(target, size // count)
    part = jnp.take_along_axis(parts, own[..., None, None], -2)[..., 0, :]
    return jnp.maximum(_most_of_others(part, place), _most_of_others(parts.max(-1), own))


def _log_odds(logits: Array, target: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    z = jnp.take_along_axis(logits, target[..., None], -1)[..., 0]
    most = jax.lax.platform_dependent(
        logits, target, cpu=_most_of_others_by_parts, default=_most_of_others
    )
    most = jnp.where(jnp.isfinite(most), most, 0.0)
    # Kept for the gradient: XLA:CPU then writes it once, where the logits were, and the gradient
    # where it was. With logsumexp it would compute it twice, the first time into an array of its
    # own; with a scatter too, which is bound to the array it writes to.
    odds = jnp.where(_is_target(logits, target), 0.0, jnp.exp(logits - most[..., None]))
    total = odds.sum(-1)
    return z - (most + jnp.log(total)), (odds, target, total)


def _log_odds_bwd(saved: tuple[Array, Array, Array], g: Array) -> tuple[Array, None]:
    # Written out, so that one pass over the odds gives the gradient.
    odds, target, total = saved
    others = (-g / total)[..., None] * odds
    return jnp.where(_is_target(odds, target), g[..., None], others), None


log_odds.defvjp(_log_odds, _log_odds_bwd)


logp = TokenStat("logp", lambda row: -jax.nn.softplus(-row.log_odds))
"""log p(target), nats."""

log_complement = TokenStat("log_complement", lambda row: -jax.nn.softplus(row.log_odds))
"""log(1 - p(target)), nats, without cancellation when p(target) is close to 1."""


def _logit(row: LogitRow) -> Array:
    return jnp.take_along_axis(row.logits, row.target[..., None], -1)[..., 0]


logit = TokenStat("logit", _logit)
"""The logit of the target itself: of a reward head, the number it gives."""


def _log_collision(row: LogitRow) -> Array:
    return jax.nn.logsumexp(2 * jax.nn.log_softmax(row.logits), -1)


log_collision = TokenStat("log_collision", _log_collision)
"""log sum_v p(v)^2, nats: how likely two tokens drawn here are the same."""


def _forward_kl(row: LogitRow) -> Array:
    assert row.ref is not None, "a joint statistic is of two models"
    policy, ref = jax.nn.log_softmax(row.logits), jax.nn.log_softmax(row.ref)
    return (jnp.exp(ref) * (ref - policy)).sum(-1)


forward_kl = TokenStat("forward_kl", _forward_kl, joint=True)
"""KL(reference || policy) of the next token, over the whole vocabulary, nats."""


def _earth_mover(row: LogitRow) -> Array:
    assert row.head is not None, "this statistic reads the unembedding"
    head = jax.lax.stop_gradient(row.head.astype(jnp.float32))
    directions = head / jnp.maximum(jnp.linalg.norm(head, axis=0, keepdims=True), 1e-12)
    gold = jnp.moveaxis(directions[:, row.target], 0, -1)
    # Exactly 0 at the target: what rounding leaves there would drown the others where p is near 1.
    away = jnp.where(_is_target(row.logits, row.target), 0.0, 1.0 - gold @ directions)
    return (jax.nn.softmax(row.logits, -1) * away).sum(-1)


earth_mover = TokenStat("earth_mover", _earth_mover)
"""sum_v p(v) (1 - cos(e_v, e_target)), e the columns of the unembedding, constant; from 0 to 2."""


def _activation(means: Array, mask: Array) -> Array:
    inside = mask[..., None, :]
    low = jnp.where(inside, means, jnp.inf).min(-1, keepdims=True)
    high = jnp.where(inside, means, -jnp.inf).max(-1, keepdims=True)
    apart = high > low
    scaled = (means - jnp.where(apart, low, 0.0)) / jnp.where(apart, high - low, 1.0)
    return jnp.where(apart, scaled, 1.0).mean(-2)


activation = LayerStat("activation", _activation)
"""The mean of a layer, rescaled to 0 at the response's least and 1 at its greatest, averaged over
layers; a layer that has the same of all tokens, as of one alone, counts as 1."""


def response(logp: Numbers, mask: Numbers | None = None) -> SequenceStats:
    """Statistics of a response from the log-probabilities of its tokens, to call a loss by hand.

    Args:
      logp: log-probabilities in nats, [B, T], or [T] for a batch of one example.
      mask: True on scored tokens, of the shape of `logp`; None: all are scored.

    Returns:
      Statistics [B] with the token statistics `logp` and `log_complement`.

    Raises:
      ValueError: `logp` has another number of axes, or `mask` another shape.
    """
    values = jnp.asarray(logp, jnp.float32)
    scored = jnp.ones(values.shape, bool) if mask is None else jnp.asarray(mask, bool)
    if values.ndim not in (1, 2):
        raise ValueError(f"logp has shape {values.shape}; wanted [T] or [B, T]")
    if scored.shape != values.shape:
        raise ValueError(f"mask has shape {scored.shape}, and logp has {values.shape}")
    values, scored = jnp.atleast_2d(values), jnp.atleast_2d(scored)
    return reduce_tokens({"logp": values, "log_complement": log1mexp(values)}, scored)


def reduce_tokens(token: dict[str, Array], mask: Array) -> SequenceStats:
    """Token statistics [..., T] and their mask [..., T] -> sequence statistics [...].

    `logp` is 0 where no log-probabilities are read: of a reward head, which gives none.
    """
    token = {k: jnp.where(mask, v, 0.0) for k, v in token.items()}
    weights = mask.astype(jnp.float32)
    length = weights.sum(-1)
    total = token["logp"].sum(-1) if "logp" in token else jnp.zeros_like(length)
    return SequenceStats(logp=total, length=length, mask=weights, token=token)
