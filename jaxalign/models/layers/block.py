"""One layer of a decoder."""

from __future__ import annotations

from flax import nnx
from jax.typing import DTypeLike

from ...core.sharding import constrain
from ...core.types import Array
from ..spec import Experts, Latent, Layer
from .attention import Attend, Attention, Kept
from .latent import LatentAttention
from .mixture import Mixture
from .mlp import Mlp
from .norm import Norm
from .rope import Tables


class Block(nnx.Module):
    """One layer: attention and feed-forward, with their norms, added to the residual stream."""

    attention_norm: Norm | None = None
    attention_out_norm: Norm | None = None
    mlp_norm: Norm | None = None
    mlp_out_norm: Norm | None = None

    def __init__(self, layer: Layer, width: int, rngs: nnx.Rngs, dtype: DTypeLike):
        self.layer = layer

        def norm() -> Norm:
            return Norm(layer.norm, (width,), dtype)

        if isinstance(layer.attention, Latent):
            self.attention = LatentAttention(layer.attention, width, rngs, dtype)
        else:
            self.attention = Attention(layer.attention, width, rngs, dtype)
        if isinstance(layer.mlp, Experts):
            self.mlp = Mixture(layer.mlp, width, rngs, dtype)
        else:
            self.mlp = Mlp(layer.mlp, width, rngs, dtype)
        if layer.places != "after":
            self.attention_norm = norm()
            self.mlp_norm = None if layer.parallel == "one norm" else norm()
        if layer.places != "before":
            self.attention_out_norm, self.mlp_out_norm = norm(), norm()

    def __call__(
        self, x: Array, tables: Tables | None, attend: Attend[Kept], compact: bool = False
    ) -> tuple[Array, Kept]:
        """[K, L, D] -> [K, L, D], and the second result of `attend(q, k, v, sinks)`.

        If `compact`, latent attention calls it with latents in place of keys and values.
        """
        h = x if self.attention_norm is None else self.attention_norm(x)
        if isinstance(self.attention, LatentAttention):
            a, kept = self.attention(h, tables, attend, compact)
        else:
            a, kept = self.attention(h, tables, attend)
        y = x + self._scaled(a, self.attention_out_norm)
        if self.layer.parallel != "one norm":
            read = y if self.layer.parallel == "no" else x
            h = read if self.mlp_norm is None else self.mlp_norm(read)
        y = y + self._scaled(self.mlp(h), self.mlp_out_norm)
        return constrain(y, "batch", None, None), kept

    def _scaled(self, y: Array, norm: Norm | None) -> Array:
        y = y if norm is None else norm(y)
        return y if self.layer.residual_scale == 1 else y * self.layer.residual_scale
