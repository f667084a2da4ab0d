"""One layer of a decoder."""

from __future__ import annotations

from collections.abc import Callable

from flax import nnx
from jax.typing import DTypeLike

from ...core.sharding import constrain
from ...core.types import Array
from ..spec import Delta, Experts, Latent, Layer, ShortConv, Softmax
from .attention import Attention, Kept
from .delta import DeltaNet
from .latent import LatentAttention
from .mixture import Mixture, Routing
from .mlp import Mlp
from .norm import Norm
from .short_conv import GatedConv

Mixer = Attention | LatentAttention | DeltaNet | GatedConv
Mix = Callable[[Mixer, Array], tuple[Array, Kept]]
"""(mixer, its input [K, L, D]) -> (its output [K, L, D], anything to keep)."""


class Block(nnx.Module):
    """One layer: attention and feed-forward, with their norms, added to the residual stream.

    A recurrent layer has `delta` or `conv` in place of `attention`.
    """

    attention: Attention | LatentAttention | None = None
    delta: DeltaNet | None = None
    conv: GatedConv | None = None
    attention_norm: Norm | None = None
    attention_out_norm: Norm | None = None
    mlp_norm: Norm | None = None
    mlp_out_norm: Norm | None = None

    def __init__(self, layer: Layer, width: int, rngs: nnx.Rngs, dtype: DTypeLike):
        self.layer = layer

        def norm() -> Norm:
            return Norm(layer.norm, (width,), dtype)

        match layer.attention:
            case Softmax() as kind:
                self.attention = Attention(kind, width, rngs, dtype)
            case Latent() as kind:
                self.attention = LatentAttention(kind, width, rngs, dtype)
            case Delta() as kind:
                self.delta = DeltaNet(kind, width, rngs, dtype)
            case ShortConv() as kind:
                self.conv = GatedConv(kind, width, rngs, dtype)
        if isinstance(layer.mlp, Experts):
            self.mlp = Mixture(layer.mlp, width, rngs, dtype)
        else:
            self.mlp = Mlp(layer.mlp, width, rngs, dtype)
        if layer.places != "after":
            self.attention_norm = norm()
            self.mlp_norm = None if layer.parallel == "one norm" else norm()
        if layer.places != "before":
            self.attention_out_norm, self.mlp_out_norm = norm(), norm()

    def __call__(self, x: Array, mix: Mix[Kept], real: Array) -> tuple[Array, Kept, Routing | None]:
        """[K, L, D] -> [K, L, D], the second result of `mix`, and the routing to experts.

        `real` says which tokens count in the routing, [K, L] bool.
        """
        mixer = self.attention or self.delta or self.conv
        assert mixer is not None
        h = x if self.attention_norm is None else self.attention_norm(x)
        a, kept = mix(mixer, h)
        y = x + self._scaled(a, self.attention_out_norm)
        if self.layer.parallel != "one norm":
            read = y if self.layer.parallel == "no" else x
            h = read if self.mlp_norm is None else self.mlp_norm(read)
        out, routing = self.mlp(h, real) if isinstance(self.mlp, Mixture) else (self.mlp(h), None)
        y = y + self._scaled(out, self.mlp_out_norm)
        return constrain(y, "batch", None, None), kept, routing

    def _scaled(self, y: Array, norm: Norm | None) -> Array:
        y = y if norm is None else norm(y)
        return y if self.layer.residual_scale == 1 else y * self.layer.residual_scale
