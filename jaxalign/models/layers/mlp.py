"""The feed-forward of one layer."""

from __future__ import annotations

from collections.abc import Callable

import jax
from flax import nnx
from jax.typing import DTypeLike

from ...core.sharding import constrain
from ...core.types import Array
from ..spec import Spec
from .projections import Linear

# "gelu" as in torch: the erfc of jax.nn.gelu takes XLA:CPU twice the time.
ACTIVATION: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: x * 0.5 * (1.0 + jax.lax.erf(x * 0.5**0.5)),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}


class Mlp(nnx.Module):
    """down(act(gate(x)) * up(x)), or down(act(up(x))) without a gate."""

    def __init__(self, spec: Spec, rngs: nnx.Rngs, dtype: DTypeLike):
        self.activation = spec.activation
        kind = {"bias": spec.mlp_bias, "dtype": dtype}
        into, back = (spec.width, spec.mlp_width), (spec.mlp_width, spec.width)
        self.gate = Linear(rngs, into, ("embed", "mlp"), **kind) if spec.gated else None
        self.up = Linear(rngs, into, ("embed", "mlp"), **kind)
        self.down = Linear(rngs, back, ("mlp", "embed"), **kind)

    def __call__(self, x: Array) -> Array:
        """[K, L, D] -> [K, L, D]."""
        act = ACTIVATION[self.activation]
        y = act(self.up(x)) if self.gate is None else act(self.gate(x)) * self.up(x)
        return self.down(constrain(y, "batch", None, "mlp"))
