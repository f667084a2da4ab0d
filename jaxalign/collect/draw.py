"""One token for each row of logits, drawn from a tempered and restricted distribution."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..core.types import Array


class How(NamedTuple):
    """The settings of a program that draws answers; static."""

    temperature: float
    top_k: int
    top_p: float
    stop: tuple[int, ...]
    max_new: int


class Token(NamedTuple):
    """A token of each of N rows, with its log-probabilities in nats."""

    id: Array  # [N] int32
    logp: Array  # [N] under the model
    sampler_logp: Array  # [N] under the distribution that it was drawn from


def draw(how: How, key: Array, step: Array, logits: Array) -> Token:
    """Draw a token for each row of logits.

    Args:
      how: temperature 0 takes the most likely token, whose `sampler_logp` is 0.
      key: random keys [N].
      step: the number of tokens drawn before for each row, [N].
      logits: [N, V] float32.
    """
    if how.temperature == 0:
        token = jnp.argmax(logits, -1).astype(jnp.int32)
        return Token(token, _logp(logits, token), jnp.zeros(len(token)))
    allowed = logits if how.temperature == 1 else logits / how.temperature
    allowed = restrict(allowed, how.top_k, how.top_p)
    now = jax.vmap(jax.random.fold_in)(key, step)
    token = invert(jax.vmap(jax.random.uniform)(now), allowed)
    logp = _logp(logits, token)
    return Token(token, logp, logp if allowed is logits else _logp(allowed, token))


def _logp(logits: Array, token: Array) -> Array:
    own = jnp.take_along_axis(logits, token[:, None], -1)[:, 0]
    return own - jax.nn.logsumexp(logits, -1)


def invert(uniform: Array, logits: Array) -> Array:
    """The first token whose cumulative probability is over a uniform number, [N] int32.

    The vocabulary is cut into about sqrt(V) blocks. Their sums find the block, and the sums within
    it the token, so one random number and one pass over the probabilities are enough.

    Args:
      uniform: [N], at least 0 and less than 1.
      logits: [N, V] float32; -inf has probability 0.
    """
    rows, vocab = logits.shape
    width = math.isqrt(vocab - 1) + 1
    blocks = -(-vocab // width)
    weights = jnp.exp(logits - jnp.max(logits, -1, keepdims=True))
    weights = jnp.pad(weights, ((0, 0), (0, blocks * width - vocab)))
    weights = weights.reshape(rows, blocks, width)
    sums = jnp.cumsum(weights.sum(-1), -1)
    wanted = uniform * sums[:, -1]
    block = _first_over(sums, wanted)
    before = jnp.where(block > 0, jnp.take_along_axis(sums, block[:, None] - 1, -1)[:, 0], 0)
    inside = jnp.take_along_axis(weights, block[:, None, None], 1)[:, 0]
    return block * width + _first_over(jnp.cumsum(inside, -1), wanted - before)


def _first_over(sums: Array, wanted: Array) -> Array:
    """The first place of growing sums [N, n] that is over `wanted` [N], or else where they end.

    They end before `wanted` only by rounding. Places after the last growth have probability 0.
    """
    last = jnp.argmax(sums, -1)
    return jnp.minimum((sums <= wanted[:, None]).sum(-1), last).astype(jnp.int32)


def restrict(logits: Array, top_k: int, top_p: float) -> Array:
    """Logits [N, V] with all but the most likely tokens at -inf.

    Keeps the `top_k` largest logits (0: all), then the smallest set of the most likely among them
    whose probability reaches `top_p` (Holtzman et al. 2020, arXiv:1904.09751). Ties at the edge are
    all kept.
    """
    if top_k:
        edge = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < edge, -jnp.inf, logits)
    if top_p < 1:
        falling = jnp.flip(jnp.sort(logits, -1), -1)
        before = jnp.cumsum(jax.nn.softmax(falling, -1), -1) - jax.nn.softmax(falling, -1)
        edge = jnp.min(jnp.where(before < top_p, falling, jnp.inf), -1, keepdims=True)
        logits = jnp.where(logits < edge, -jnp.inf, logits)
    return logits
