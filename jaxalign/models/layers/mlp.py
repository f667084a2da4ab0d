"""The feed-forward of one layer."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ...core.sharding import constrain
from ...core.types import Array
from ..spec import Dense
from .projections import Linear, low_rank

# "gelu" as in torch: the erfc of jax.nn.gelu takes XLA:CPU twice the time.
ACTIVATION: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: x * 0.5 * (1.0 + jax.lax.erf(x * 0.5**0.5)),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_sigmoid": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}


def activated(kind: Dense, gate: Array | None, up: Array) -> Array:
    """act(gate) * (up + offset), or act(up) without a gate."""
    act = ACTIVATION[kind.activation]
    if gate is None:
        return act(up)
    if kind.limit is not None:
        gate, up = jnp.minimum(gate, kind.limit), jnp.clip(up, -kind.limit, kind.limit)
    return act(gate) * (up + kind.offset if kind.offset else up)


class Mlp(nnx.Module):
    """down(act(gate(x)) * up(x)), or down(act(up(x))) without a gate."""

    lora_a: nnx.Param | None = None
    """The A that the adapters of gate and up share, if they do."""
    lora_scale: float = 0.0

    def __init__(self, kind: Dense, width: int, rngs: nnx.Rngs, dtype: DTypeLike):
        self.kind = kind
        options = {"bias": kind.bias, "dtype": dtype}
        into, back = (width, kind.width), (kind.width, width)
        self.gate = Linear(rngs, into, ("embed", "mlp"), **options) if kind.gated else None
        self.up = Linear(rngs, into, ("embed", "mlp"), **options)
        self.down = Linear(rngs, back, ("mlp", "embed"), **options)

    def __call__(self, x: Array) -> Array:
        """[K, L, D] -> [K, L, D]."""
        low = None if self.lora_a is None else low_rank(x, self.lora_a, self.lora_scale)
        gate = None if self.gate is None else self.gate(x, low)
        y = activated(self.kind, gate, self.up(x, low))
        return self.down(constrain(y, "batch", None, "mlp"))
