"""The gated delta net (Yang et al. 2024, arXiv:2412.06464), in place of attention."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ...core.sharding import batch_shards, constrain, spec
from ...core.types import Array
from ..attention.mask import RowMask
from ..spec import Delta
from .conv import Conv
from .delta_rule import delta_rule
from .mlp import ACTIVATION
from .norm import Norm
from .projections import Linear, low_rank

Held = dict[str, Array]
"""What a layer keeps of earlier tokens in generation, each array [K, ...]."""


class Gates(nnx.Module):
    """beta = sigmoid(x B) and g = -exp(log_rate) softplus(x A + step): strengths and log decays."""

    lora_a: nnx.Param | None = None
    """The A that the adapters of both layers share, if they do."""
    lora_scale: float = 0.0

    def __init__(self, heads: int, width: int, rngs: nnx.Rngs, dtype: DTypeLike):
        shape, axes = (width, heads), ("embed", "heads")
        self.beta = Linear(rngs, shape, axes, bias=False, dtype=dtype)
        self.decay = Linear(rngs, shape, axes, bias=False, dtype=dtype)
        self.log_rate = nnx.Param(jnp.zeros(heads, dtype), out_sharding=("heads",))
        self.step = nnx.Param(jnp.zeros(heads, dtype), out_sharding=("heads",))

    def __call__(self, x: Array) -> tuple[Array, Array]:
        """[K, L, D] -> beta in the dtype of x and g in float32, [K, L, H] each."""
        low = None if self.lora_a is None else low_rank(x, self.lora_a, self.lora_scale)
        rate, step = (p[...].astype(jnp.float32) for p in (self.log_rate, self.step))
        decay = self.decay(x, low).astype(jnp.float32)
        return jax.nn.sigmoid(self.beta(x, low)), -jnp.exp(rate) * jax.nn.softplus(decay + step)


class DeltaNet(nnx.Module):
    """Convolved queries, keys and values, the gated delta rule, a norm and an output gate.

    q, k and v are act(conv(x W)), q and k of norm 1; with o the outputs of `delta_rule`,
    y = (norm(o) * silu(x Z)) O.
    """

    lora_a: nnx.Param | None = None
    """The A that the adapters of the layers fused with the queries share, if they do."""
    lora_scale: float = 0.0

    def __init__(self, kind: Delta, width: int, rngs: nnx.Rngs, dtype: DTypeLike):
        self.kind = kind
        keys, values = kind.key_heads * kind.key_width, kind.value_heads * kind.value_width

        def into(channels: int) -> Linear:
            return Linear(rngs, (width, channels), ("embed", "heads"), bias=False, dtype=dtype)

        self.query, self.key, self.value = into(keys), into(keys), into(values)
        self.out_gate = into(values)
        self.query_conv = Conv(keys, kind.taps, rngs, dtype)
        self.key_conv = Conv(keys, kind.taps, rngs, dtype)
        self.value_conv = Conv(values, kind.taps, rngs, dtype)
        self.gates = Gates(kind.value_heads, width, rngs, dtype)
        self.norm = Norm(kind.norm, (kind.value_width,), dtype)
        self.out = Linear(rngs, (values, width), ("heads", "embed"), bias=False, dtype=dtype)

    def __call__(self, x: Array, rows: RowMask, held: Held | None) -> tuple[Array, Held | None]:
        """[K, L, D] -> [K, L, D], and the next `held`, if it is given; see `Conv`."""
        low = None if self.lora_a is None else low_rank(x, self.lora_a, self.lora_scale)
        act, kept = ACTIVATION[self.kind.activation], {}

        def heads(name: str, width: int) -> Array:
            """Queries, keys or values, [K, L, heads, width]."""
            linear, conv = getattr(self, name), getattr(self, f"{name}_conv")
            y = constrain(linear(x, low), "batch", None, "heads")
            y, kept[name] = conv(y, rows, held[name] if held else None)
            return act(y).reshape(*y.shape[:2], -1, width)

        q, k = (unit(heads(name, self.kind.key_width)) for name in ("query", "key"))
        v = heads("value", self.kind.value_width)
        q, k = (jnp.repeat(y, v.shape[2] // y.shape[2], axis=2) for y in (q, k))
        q = q * self.kind.key_width**-0.5
        o, kept["state"] = _per_device(
            q, k, v, *self.gates(x), rows, held["state"] if held else None
        )
        y = self.norm(o.astype(x.dtype)).reshape(*x.shape[:2], -1)
        gate = jax.nn.silu(self.out_gate(x, low).astype(jnp.float32))
        y = constrain((y * gate).astype(x.dtype), "batch", None, "heads")
        return self.out(y), None if held is None else kept


def unit(x: Array) -> Array:
    """Divide by sqrt(sum x^2 + 1e-6) over the last axis; float32."""
    y = x.astype(jnp.float32)
    return y * jax.lax.rsqrt(jnp.sum(y * y, -1, keepdims=True) + 1e-6)


def _per_device(
    q: Array, k: Array, v: Array, beta: Array, g: Array, rows: RowMask, state: Array | None
) -> tuple[Array, Array]:
    """`delta_rule`, of which every device of the mesh computes its own rows and heads.

    If the mesh does not divide the rows or the heads, its devices compute all of them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if state is None:
        state = jnp.zeros((q.shape[0], *q.shape[2:], v.shape[-1]))
    if mesh.empty:
        return delta_rule(q, k, v, beta, g, rows, state)
    batch = "batch" if q.shape[0] % batch_shards(mesh) == 0 else None
    cut = "heads" if q.shape[2] % mesh.shape["tensor"] == 0 else None
    by_head, of_state = spec(batch, None, cut), spec(batch, cut)
    run = jax.shard_map(
        delta_rule,
        in_specs=(*(by_head,) * 5, spec(batch), of_state),
        out_specs=(by_head, of_state),
    )
    with jax.named_scope("delta"):
        return run(q, k, v, beta, g, rows, state)
