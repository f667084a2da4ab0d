"""The attention of one layer: projections and rotary positions around a given attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from flax import nnx
from jax.typing import DTypeLike

from ...core.sharding import constrain
from ...core.types import Array
from ..spec import Spec
from .projections import Linear, low_rank
from .rope import rotate

Tables = tuple[Array, Array]
Kept = TypeVar("Kept")
Attend = Callable[[Array, Array, Array], tuple[Array, Kept]]
"""(queries [K, L, H, C], keys, values [K, L, Hk, C]) -> (output [K, L, H, C], anything to keep)."""


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions."""

    lora_a: nnx.Param | None = None
    """The A that the adapters of query, key and value share, if they do."""
    lora_scale: float = 0.0

    def __init__(self, spec: Spec, rngs: nnx.Rngs, dtype: DTypeLike):
        self.spec = spec
        into = {"bias": spec.qkv_bias, "dtype": dtype}
        q_width = spec.heads * spec.head_width
        kv_width = spec.kv_heads * spec.head_width
        self.query = Linear(rngs, (spec.width, q_width), ("embed", "heads"), **into)
        self.key = Linear(rngs, (spec.width, kv_width), ("embed", "heads"), **into)
        self.value = Linear(rngs, (spec.width, kv_width), ("embed", "heads"), **into)
        self.out = Linear(
            rngs, (q_width, spec.width), ("heads", "embed"), bias=spec.out_bias, dtype=dtype
        )

    def __call__(self, x: Array, tables: Tables, attend: Attend[Kept]) -> tuple[Array, Kept]:
        """[K, L, D] -> [K, L, D], and the second result of `attend(q, k, v)`."""
        low = None if self.lora_a is None else low_rank(x, self.lora_a, self.lora_scale)

        def heads(linear: Linear, count: int) -> Array:
            y = constrain(linear(x, low), "batch", None, "heads")
            return y.reshape(*y.shape[:2], count, self.spec.head_width)

        q = rotate(heads(self.query, self.spec.heads), tables)
        k = rotate(heads(self.key, self.spec.kv_heads), tables)
        y, kept = attend(q, k, heads(self.value, self.spec.kv_heads))
        return self.out(constrain(y.reshape(*y.shape[:2], -1), "batch", None, "heads")), kept
