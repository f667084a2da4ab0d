"""Rotary position embeddings (Su et al. 2021, arXiv:2104.09864), in float32."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from ...core.types import Array
from ..spec import Rope


def frequencies(rope: Rope) -> np.ndarray:
    """Angle per position, radians, for each rotated pair of dimensions, [rope.width / 2].

    `llama3` divides the low frequencies by `factor` and leaves the high ones, with a linear ramp
    between (Llama 3.1, Meta 2024): a frequency is low when its wavelength exceeds
    original_positions / low_freq_factor.
    """
    base = rope.theta ** (-np.arange(0, rope.width, 2) / rope.width)
    if rope.kind == "linear":
        base = base / rope.factor
    if rope.kind == "llama3":
        turns = rope.original_positions * base / (2 * np.pi)
        ramp = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        keep = np.clip(ramp, 0.0, 1.0)
        base = keep * base + (1 - keep) * base / rope.factor
    return base.astype(np.float32)


def rope_tables(rope: Rope, positions: Array) -> tuple[Array, Array]:
    """Positions [K, L] -> cosines and sines of the angles, [K, L, 1, rope.width / 2] float32."""
    angles = positions[..., None, None].astype(jnp.float32) * frequencies(rope)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Array, tables: tuple[Array, Array]) -> Array:
    """Rotate the leading dimensions of each head, [K, L, heads, C] -> [K, L, heads, C].

    Dimension i is paired with i + width / 2, which is the layout of Hugging Face checkpoints.
    """
    cos, sin = tables
    half = cos.shape[-1]
    a, b, rest = jnp.split(x.astype(jnp.float32), (half, 2 * half), axis=-1)
    rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)
    return rotated.astype(x.dtype)
