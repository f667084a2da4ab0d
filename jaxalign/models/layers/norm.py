"""Normalization over the width."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ...core.types import Array
from ..spec import Spec


class Norm(nnx.Module):
    """Root-mean-square norm, or layer norm with bias, over the last axis, in float32."""

    def __init__(self, spec: Spec, dtype: DTypeLike):
        self.eps = spec.norm_eps
        self.scale = nnx.Param(jnp.ones(spec.width, dtype), out_sharding=("norm",))
        centered = spec.norm == "layer"
        blank = jnp.zeros(spec.width, dtype)
        self.bias = nnx.Param(blank, out_sharding=("norm",)) if centered else None

    def __call__(self, x: Array) -> Array:
        """[..., D] -> [..., D] in the dtype of x."""
        y = x.astype(jnp.float32)
        if self.bias is not None:
            y = y - jnp.mean(y, -1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + self.eps)
        y = y * self.scale[...].astype(jnp.float32)
        if self.bias is not None:
            y = y + self.bias[...].astype(jnp.float32)
        return y.astype(x.dtype)
