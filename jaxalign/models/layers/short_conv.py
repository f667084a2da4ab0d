"""A gated short convolution in place of attention (Liquid AI 2025, LFM2, arXiv:2511.23404)."""

from __future__ import annotations

from flax import nnx
from jax.typing import DTypeLike

from ...core.sharding import constrain
from ...core.types import Array
from ..attention.mask import RowMask
from ..spec import ShortConv
from .conv import Conv
from .projections import Linear, low_rank


class GatedConv(nnx.Module):
    """(x C * conv(x B * x X)) O, without an activation."""

    lora_a: nnx.Param | None = None
    """The A that the adapters of both gates and the value share, if they do."""
    lora_scale: float = 0.0

    def __init__(self, kind: ShortConv, width: int, rngs: nnx.Rngs, dtype: DTypeLike):
        self.kind = kind

        def linear(into: str, out: str) -> Linear:
            return Linear(rngs, (width, width), (into, out), bias=kind.bias, dtype=dtype)

        self.in_gate = linear("embed", "heads")
        self.out_gate = linear("embed", "heads")
        self.value = linear("embed", "heads")
        self.conv = Conv(width, kind.taps, rngs, dtype, bias=kind.bias)
        self.out = linear("heads", "embed")

    def __call__(
        self, x: Array, rows: RowMask, held: dict[str, Array] | None
    ) -> tuple[Array, dict[str, Array] | None]:
        """[K, L, D] -> [K, L, D], and the next `held`, if it is given; see `Conv`."""
        low = None if self.lora_a is None else low_rank(x, self.lora_a, self.lora_scale)
        y = constrain(self.in_gate(x, low) * self.value(x, low), "batch", None, "heads")
        y, kept = self.conv(y, rows, held["inputs"] if held else None)
        y = constrain(self.out_gate(x, low) * y, "batch", None, "heads")
        return self.out(y), None if kept is None else {"inputs": kept}
