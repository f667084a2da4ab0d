"""Rotary position embeddings (Su et al. 2021, arXiv:2104.09864), in float32."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...core.types import Array
from ..spec import Rope


class Tables(NamedTuple):
    """What a `Rope` gives at each position, float32."""

    cos: Array  # [K, L, 1, rotated width / 2]
    sin: Array  # [K, L, 1, rotated width / 2]
    query: Array | None = None  # [K, L, 1, 1], a factor of queries; None: 1


def rope_tables(rope: Rope, positions: Array, lengths: Array) -> Tables:
    """Cosines and sines of the angles, times `rope.scale`, and the factor of queries.

    Args:
      rope: the frequencies.
      positions: position of each token in its own sequence, [K, L].
      lengths: tokens of the longest sequence that shares its tokens, [K, L] or [K, 1]; it chooses
        between short and long frequencies.
    """
    frequencies: Any = np.array(rope.frequencies, np.float32)
    if rope.long:
        is_long = (lengths > rope.longest_short)[..., None, None]
        frequencies = jnp.where(is_long, np.array(rope.long, np.float32), frequencies)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if rope.scale != 1:
        cos, sin = rope.scale * cos, rope.scale * sin
    if not rope.query_slope:
        return Tables(cos, sin)
    steps = (positions + rope.query_first) // rope.query_step
    steps = steps[..., None, None].astype(jnp.float32)
    return Tables(cos, sin, 1 + rope.query_slope * jnp.log1p(steps))


def segment_lengths(positions: Array, segment: Array) -> Array:
    """Tokens of the longest sequence of each token's own segment, [K, L]."""
    count = positions.shape[1] + 1

    def of_row(positions: Array, segment: Array) -> Array:
        return jax.ops.segment_max(positions, segment, count)[segment] + 1

    return jax.vmap(of_row)(positions, segment)


def rotate(x: Array, rope: Rope, tables: Tables) -> Array:
    """Rotate the leading dimensions of each head, [K, L, heads, C] -> [K, L, heads, C]."""
    cos, sin = tables.cos, tables.sin
    half = cos.shape[-1]
    y = x.astype(jnp.float32)
    if rope.interleaved:
        y, rest = jnp.split(y, (2 * half,), axis=-1)
        pairs = y.reshape(*y.shape[:-1], half, 2)
        a, b = pairs[..., 0], pairs[..., 1]
        turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(y.shape)
        return jnp.concatenate([turned, rest], axis=-1).astype(x.dtype)
    a, b, rest = jnp.split(y, (half, 2 * half), axis=-1)
    rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)
    return rotated.astype(x.dtype)
