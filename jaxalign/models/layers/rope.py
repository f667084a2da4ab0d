"""Rotary position embeddings (Su et al. 2021, arXiv:2104.09864), in float32."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from ...core.types import Array
from ..spec import Rope

Tables = tuple[Array, Array]
"""Cosines and sines, [K, L, 1, rotated width / 2] float32."""


def rope_tables(rope: Rope, positions: Array) -> Tables:
    """Positions [K, L] -> cosines and sines of the angles, times `rope.scale`."""
    frequencies = np.array(rope.frequencies, np.float32)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return (cos, sin) if rope.scale == 1 else (rope.scale * cos, rope.scale * sin)


def rotate(x: Array, rope: Rope, tables: Tables) -> Array:
    """Rotate the leading dimensions of each head, [K, L, heads, C] -> [K, L, heads, C]."""
    cos, sin = tables
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
