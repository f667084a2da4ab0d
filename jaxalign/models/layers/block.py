"""The modules of one decoder layer. Every parameter carries its logical axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ...core.sharding import constrain
from ...core.types import Array
from ..config import ModelConfig
from .rope import rotate

Tables = tuple[Array, Array]
Attend = Callable[[Array, Array, Array], tuple[Array, Any]]

# "gelu" as torch has it: the erfc of jax.nn.gelu takes XLA:CPU twice the time.
ACTIVATION: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: x * 0.5 * (1.0 + jax.lax.erf(x * 0.5**0.5)),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}
INIT_STD = 0.02


def normal_param(rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str | None, ...], dtype: Any):
    """A matrix drawn from a normal distribution with standard deviation 0.02."""
    value = INIT_STD * jax.random.normal(rngs.params(), shape, dtype)
    return nnx.Param(value, out_sharding=axes)


def low_rank(x: Array, a: nnx.Param, scale: float) -> Array:
    """[..., in] -> scale x A [..., rank] in the dtype of x; summed in float32."""
    low = jnp.dot(x, a[...].astype(x.dtype), preferred_element_type=jnp.float32)
    return (scale * low).astype(x.dtype)


class Linear(nnx.Module):
    """x kernel + bias, [..., in] -> [..., out], in the dtype of x.

    With an adapter, `lora_scale` (x A) B is added; see `lora.attach`.
    """

    lora_a: nnx.Param | None = None
    lora_b: nnx.Param | None = None
    lora_scale: float = 0.0

    def __init__(
        self,
        rngs: nnx.Rngs,
        shape: tuple[int, int],
        axes: tuple[str, str | None],
        *,
        bias: bool,
        dtype: Any,
    ):
        self.kernel = normal_param(rngs, shape, axes, dtype)
        # A bias on the model width is whole on every device, as are the norms.
        axis = "norm" if axes[1] == "embed" else axes[1]
        self.bias = nnx.Param(jnp.zeros(shape[1], dtype), out_sharding=(axis,)) if bias else None

    def __call__(self, x: Array, low: Array | None = None) -> Array:
        """[..., in] -> [..., out]; `low` is scale x A [..., rank] where the caller has A."""
        # Flattened, since XLA:CPU takes twice the time for the gradient of a kernel over two axes.
        flat = x.reshape(-1, x.shape[-1])
        y = flat @ self.kernel[...].astype(x.dtype)
        if self.lora_a is not None:
            low = low_rank(flat, self.lora_a, self.lora_scale)
        if self.lora_b is not None:
            assert low is not None  # the caller has A
            y = y + low.reshape(-1, low.shape[-1]) @ self.lora_b[...].astype(x.dtype)
        y = y.reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class Norm(nnx.Module):
    """Root-mean-square norm, or layer norm with bias, over the last axis, in float32."""

    def __init__(self, config: ModelConfig, dtype: Any):
        self.eps = config.norm_eps
        self.scale = nnx.Param(jnp.ones(config.width, dtype), out_sharding=("norm",))
        centred = config.norm == "layer"
        blank = jnp.zeros(config.width, dtype)
        self.bias = nnx.Param(blank, out_sharding=("norm",)) if centred else None

    def __call__(self, x: Array) -> Array:
        """[..., D] -> the same."""
        y = x.astype(jnp.float32)
        if self.bias is not None:
            y = y - jnp.mean(y, -1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + self.eps)
        y = y * self.scale[...].astype(jnp.float32)
        if self.bias is not None:
            y = y + self.bias[...].astype(jnp.float32)
        return y.astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions."""

    lora_a: nnx.Param | None = None
    """Of query, key and value, where their adapters share it."""
    lora_scale: float = 0.0

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, dtype: Any):
        self.config = config
        into = {"bias": config.qkv_bias, "dtype": dtype}
        q_width = config.heads * config.head_width
        kv_width = config.kv_heads * config.head_width
        self.query = Linear(rngs, (config.width, q_width), ("embed", "heads"), **into)
        self.key = Linear(rngs, (config.width, kv_width), ("embed", "heads"), **into)
        self.value = Linear(rngs, (config.width, kv_width), ("embed", "heads"), **into)
        self.out = Linear(
            rngs, (q_width, config.width), ("heads", "embed"), bias=config.out_bias, dtype=dtype
        )

    def __call__(self, x: Array, tables: Tables, attend: Attend) -> tuple[Array, Any]:
        """[K, L, D] -> [K, L, D], and whatever `attend(q, k, v)` returns beside its output."""
        low = None if self.lora_a is None else low_rank(x, self.lora_a, self.lora_scale)

        def heads(linear: Linear, count: int) -> Array:
            y = constrain(linear(x, low), "batch", None, "heads")
            return y.reshape(*y.shape[:2], count, self.config.head_width)

        q = rotate(heads(self.query, self.config.heads), tables)
        k = rotate(heads(self.key, self.config.kv_heads), tables)
        y, kept = attend(q, k, heads(self.value, self.config.kv_heads))
        return self.out(constrain(y.reshape(*y.shape[:2], -1), "batch", None, "heads")), kept


class Mlp(nnx.Module):
    """down(act(gate(x)) * up(x)), or down(act(up(x))) without a gate."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, dtype: Any):
        self.activation = config.activation
        kind = {"bias": config.mlp_bias, "dtype": dtype}
        into, back = (config.width, config.mlp_width), (config.mlp_width, config.width)
        self.gate = Linear(rngs, into, ("embed", "mlp"), **kind) if config.gated else None
        self.up = Linear(rngs, into, ("embed", "mlp"), **kind)
        self.down = Linear(rngs, back, ("mlp", "embed"), **kind)

    def __call__(self, x: Array) -> Array:
        """[K, L, D] -> the same."""
        act = ACTIVATION[self.activation]
        y = act(self.up(x)) if self.gate is None else act(self.gate(x)) * self.up(x)
        return self.down(constrain(y, "batch", None, "mlp"))


class Block(nnx.Module):
    """One layer: attention and feed-forward, each behind a norm, added to the residual stream."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, dtype: Any):
        self.parallel = config.parallel_residual
        self.attention_norm = Norm(config, dtype)
        self.attention = Attention(config, rngs, dtype)
        self.mlp_norm = Norm(config, dtype)
        self.mlp = Mlp(config, rngs, dtype)

    def __call__(self, x: Array, tables: Tables, attend: Attend) -> tuple[Array, Any]:
        """[K, L, D] -> [K, L, D], and whatever `attend(q, k, v)` returns beside its output."""
        a, kept = self.attention(self.attention_norm(x), tables, attend)
        if self.parallel:
            y = x + a + self.mlp(self.mlp_norm(x))
        else:
            y = x + a
            y = y + self.mlp(self.mlp_norm(y))
        return constrain(y, "batch", None, None), kept
