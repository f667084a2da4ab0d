"""Hidden states and head -> token statistics, without ever holding the logits of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from .sharding import constrain
from .stats import TokenStat
from .types import Array

CHUNK = 512  # scored positions per shard whose logits are alive at a time


def token_stats(
    hidden: Array, head: Array, target: Array, needs: Sequence[TokenStat], *, chunk: int = CHUNK
) -> dict[str, Array]:
    """Statistics of the tokens at scored positions.

    Logits are float32 (operands may be bfloat16) and exist for `chunk` positions at a time, in the
    backward pass too, where they are computed again.

    Args:
      hidden: last hidden states at the scored positions, [S, M, D].
      head: unembedding, [D, V].
      target: the token that follows each position, [S, M].
      needs: statistics to compute; nothing else is.
      chunk: positions of each shard per chunk.

    Returns:
      {name: [S, M] float32}.
    """
    shards, m, _ = hidden.shape
    chunk = min(chunk, m)
    blocks = -(-m // chunk)

    def split(x: Array) -> Array:
        pad = ((0, 0), (0, blocks * chunk - m)) + ((0, 0),) * (x.ndim - 2)
        return jnp.pad(x, pad).reshape(shards, blocks, chunk, *x.shape[2:]).swapaxes(0, 1)

    @jax.checkpoint
    def block(args: tuple[Array, Array]) -> dict[str, Array]:
        h, y = args
        logits = jnp.einsum("scd,dv->scv", h, head, preferred_element_type=jnp.float32)
        logits = constrain(logits, "batch", None, "vocab")
        return {s.name: s.fn(logits, y) for s in needs}

    out = jax.lax.map(block, (split(hidden), split(target)))
    return {k: v.swapaxes(0, 1).reshape(shards, blocks * chunk)[:, :m] for k, v in out.items()}
