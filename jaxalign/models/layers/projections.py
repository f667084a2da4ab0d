"""Linear layers, which may have low-rank adapters, and the matrices they multiply by."""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ...core.types import Array

INIT_STD = 0.02


class Kernel(Protocol):
    """A matrix of a layer that is not an array: `Merged` or `Quantized`, stacked over layers."""

    def __getitem__(self, layer: Any) -> Kernel:
        """The matrix of one layer, or any other index into the leading axis."""
        ...

    def astype(self, dtype: DTypeLike) -> Array:
        """The matrix as an array of this dtype."""
        ...


def normal_param(
    rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str | None, ...], dtype: DTypeLike
) -> nnx.Param:
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
        dtype: DTypeLike,
    ):
        self.kernel = normal_param(rngs, shape, axes, dtype)
        # Every device holds a whole bias of the model width, as it holds whole norms.
        axis = "norm" if axes[1] == "embed" else axes[1]
        self.bias = nnx.Param(jnp.zeros(shape[1], dtype), out_sharding=(axis,)) if bias else None

    def __call__(self, x: Array, low: Array | None = None) -> Array:
        """[..., in] -> [..., out]; `low` is scale x A [..., rank] if the caller has A."""
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
