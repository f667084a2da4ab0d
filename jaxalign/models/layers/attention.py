"""The attention of one layer: projections, norms and positions around a given attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ...core.sharding import constrain
from ...core.types import Array
from ..spec import Softmax
from .norm import Norm
from .projections import Linear, low_rank
from .rope import Tables, rotate

Kept = TypeVar("Kept")
Attend = Callable[[Array, Array, Array, Array | None], tuple[Array, Kept]]
"""(queries [K, L, H, C], keys and values [K, L, Hk, C], sinks [H] float32) -> (output [K, L, H, C],
anything to keep)."""


class Attention(nnx.Module):
    """Grouped-query attention."""

    lora_a: nnx.Param | None = None
    """The A that the adapters of the layers fused with the query share, if they do."""
    lora_scale: float = 0.0
    out_gate: Linear | None = None
    sinks: nnx.Param | None = None
    query_norm: Norm | None = None
    key_norm: Norm | None = None

    def __init__(self, kind: Softmax, width: int, rngs: nnx.Rngs, dtype: DTypeLike):
        self.kind = kind
        into = {"bias": kind.qkv_bias, "dtype": dtype}
        q_width = kind.heads * kind.head_width
        kv_width = kind.kv_heads * kind.head_width
        self.query = Linear(rngs, (width, q_width), ("embed", "heads"), **into)
        self.key = Linear(rngs, (width, kv_width), ("embed", "heads"), **into)
        self.value = Linear(rngs, (width, kv_width), ("embed", "heads"), **into)
        if kind.gate:
            self.out_gate = Linear(rngs, (width, q_width), ("embed", "heads"), **into)
        self.out = Linear(
            rngs, (q_width, width), ("heads", "embed"), bias=kind.out_bias, dtype=dtype
        )
        if kind.sinks:
            self.sinks = nnx.Param(jnp.zeros(kind.heads, dtype), out_sharding=("norm",))
        if kind.qk_norm is not None:
            self.query_norm = self._norm(kind.heads, dtype)
            self.key_norm = self._norm(kind.kv_heads, dtype)

    def _norm(self, heads: int, dtype: DTypeLike) -> Norm:
        assert self.kind.qk_norm is not None
        width = self.kind.head_width
        shapes = {"head": (width,), "own head": (heads, width), "projection": (heads * width,)}
        return Norm(self.kind.qk_norm.kind, shapes[self.kind.qk_norm.over], dtype)

    def __call__(self, x: Array, tables: Tables | None, attend: Attend[Kept]) -> tuple[Array, Kept]:
        """[K, L, D] -> [K, L, D], and the second result of `attend(q, k, v, sinks)`."""
        low = None if self.lora_a is None else low_rank(x, self.lora_a, self.lora_scale)

        def project(linear: Linear, norm: Norm | None = None) -> Array:
            y = linear(x, low)
            y = y if norm is None else norm(y)
            if self.kind.clip is not None:
                y = jnp.clip(y, -self.kind.clip, self.kind.clip)
            return constrain(y, "batch", None, "heads")

        def heads(y: Array) -> Array:
            return y.reshape(*y.shape[:2], -1, self.kind.head_width)

        def placed(linear: Linear, norm: Norm | None) -> Array:
            """Heads of queries or keys, normalized and rotated in the order of this kind."""
            how = self.kind.qk_norm
            whole = how is not None and how.over == "projection"
            y = heads(project(linear, norm if whole else None))
            late = how is not None and how.after_rope
            if norm is not None and not whole and not late:
                y = norm(y)
            if self.kind.rope is not None and tables is not None:
                y = rotate(y, self.kind.rope, tables)
            return norm(y) if norm is not None and late else y

        q, k = placed(self.query, self.query_norm), placed(self.key, self.key_norm)
        if tables is not None and tables.query is not None:
            q = q * tables.query.astype(q.dtype)
        sinks = None if self.sinks is None else self.sinks[...].astype(jnp.float32)
        y, kept = attend(q, k, heads(project(self.value)), sinks)
        y = constrain(y.reshape(*y.shape[:2], -1), "batch", None, "heads")
        if self.out_gate is not None:
            y = y * jax.nn.sigmoid(self.out_gate(x, low))
        return self.out(y), kept
