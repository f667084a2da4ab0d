"""One layer of a decoder."""

from __future__ import annotations

from flax import nnx
from jax.typing import DTypeLike

from ...core.sharding import constrain
from ...core.types import Array
from ..spec import Spec
from .attention import Attend, Attention, Kept, Tables
from .mlp import Mlp
from .norm import Norm


class Block(nnx.Module):
    """One layer: attention and feed-forward, each behind a norm, added to the residual stream."""

    def __init__(self, spec: Spec, rngs: nnx.Rngs, dtype: DTypeLike):
        self.parallel = spec.parallel_residual
        self.attention_norm = Norm(spec, dtype)
        self.attention = Attention(spec, rngs, dtype)
        self.mlp_norm = Norm(spec, dtype)
        self.mlp = Mlp(spec, rngs, dtype)

    def __call__(self, x: Array, tables: Tables, attend: Attend[Kept]) -> tuple[Array, Kept]:
        """[K, L, D] -> [K, L, D], and the second result of `attend(q, k, v)`."""
        a, kept = self.attention(self.attention_norm(x), tables, attend)
        if self.parallel:
            y = x + a + self.mlp(self.mlp_norm(x))
        else:
            y = x + a
            y = y + self.mlp(self.mlp_norm(y))
        return constrain(y, "batch", None, None), kept
