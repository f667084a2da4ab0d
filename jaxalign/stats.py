"""Token statistics: functions of one row of logits, evaluated inside the head."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from .types import Array, SequenceStats


@dataclasses.dataclass(frozen=True)
class TokenStat:
    """A named statistic `fn(logits [..., V] float32, target [...] int) -> [...]`."""

    name: str
    fn: Callable[[Array, Array], Array]


def log_odds(logits: Array, target: Array) -> Array:
    """Log-odds of the target, m = z_y - logsumexp of the other logits; [...], nats.

    From it log p = -softplus(-m) and log(1 - p) = -softplus(m), both accurate at both ends. The
    target is picked with a comparison, not a gather, so a vocabulary-sharded row stays sharded.
    """
    hit = jax.lax.broadcasted_iota(target.dtype, logits.shape, logits.ndim - 1) == target[..., None]
    z = jnp.sum(jnp.where(hit, logits, 0.0), -1)
    return z - jax.nn.logsumexp(jnp.where(hit, -jnp.inf, logits), -1)


def _logp(logits: Array, target: Array) -> Array:
    return -jax.nn.softplus(-log_odds(logits, target))


def _log_complement(logits: Array, target: Array) -> Array:
    return -jax.nn.softplus(log_odds(logits, target))


logp = TokenStat("logp", _logp)
"""log p(target), nats."""

log_complement = TokenStat("log_complement", _log_complement)
"""log(1 - p(target)), nats, without cancellation when p(target) is close to 1."""


def reduce_tokens(token: dict[str, Array], mask: Array) -> SequenceStats:
    """Token statistics [..., T] and their mask [..., T] -> sequence statistics [...]."""
    token = {k: jnp.where(mask, v, 0.0) for k, v in token.items()}
    weights = mask.astype(jnp.float32)
    return SequenceStats(
        logp=token["logp"].sum(-1), length=weights.sum(-1), mask=weights, token=token
    )
