"""Normalization over the last axis."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ...core.types import Array
from ..spec import NormKind


class Norm(nnx.Module):
    """Root-mean-square norm or layer norm over the last axis, in float32."""

    scale: nnx.Param | None = None
    bias: nnx.Param | None = None

    def __init__(self, kind: NormKind, shape: tuple[int, ...], dtype: DTypeLike):
        """Parameters have the given shape; its last axis is the normalized one."""
        self.kind = kind
        axes = (None,) * (len(shape) - 1) + ("norm",)
        if kind.scale != "none":
            neutral = jnp.ones if kind.scale == "w" else jnp.zeros
            self.scale = nnx.Param(neutral(shape, dtype), out_sharding=axes)
        if kind.bias:
            self.bias = nnx.Param(jnp.zeros(shape, dtype), out_sharding=axes)

    def __call__(self, x: Array) -> Array:
        """[..., D] -> [..., D] in the dtype of x."""
        y = x.astype(jnp.float32)
        if self.kind.centered:
            y = y - jnp.mean(y, -1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + self.kind.eps)
        if self.scale is not None:
            w = self.scale[...].astype(jnp.float32)
            y = y * (w if self.kind.scale == "w" else 1.0 + w)
        if self.bias is not None:
            y = y + self.bias[...].astype(jnp.float32)
        return y.astype(x.dtype)
