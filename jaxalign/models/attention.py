"""Attention over packed rows with shared prompts."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ..types import Array


def branch_mask(segment: Array, branch: Array) -> Array:
    """Which positions a query may see in a packed row.

    A query sees its own segment's prompt and its own branch, up to itself:
    `segment q == segment k != 0`, `k <= q` and `branch k in (0, branch q)`.

    Args:
      segment: [K, L] example of each position within its row; 0 is padding.
      branch: [K, L] 0 in the prompt, r + 1 in response r.

    Returns:
      [K, 1, L, L] bool, query before key.
    """
    length = segment.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    same = (segment[:, :, None] == segment[:, None, :]) & (segment[:, None, :] != 0)
    visible = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
    return (causal & same & visible)[:, None]


def attend(q: Array, k: Array, v: Array, mask: Array) -> Array:
    """softmax(q k' / sqrt(C)) v, scores and softmax in float32.

    Args:
      q: [K, L, H, C] queries.
      k: [K, S, G, C] keys; H is a multiple of G.
      v: [K, S, G, C] values.
      mask: [K, 1, L, S] bool; a query that may see nothing gets a finite, meaningless result.

    Returns:
      [K, L, H, C] in the dtype of `q`.
    """
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="xla")
