"""Parameters as a file in another dtype holds them; each layer rounds its own when it runs."""

from __future__ import annotations

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..core.types import Array
from .layers.projections import Kernel


@flax.struct.dataclass
class Rounded:
    """A `Kernel`: a parameter that is rounded to `kind` before use; its gradient is not."""

    value: Array | Kernel
    kind: str = flax.struct.field(pytree_node=False)

    def __getitem__(self, layer: Any) -> Rounded:
        """The parameter of one layer."""
        return Rounded(self.value[layer], self.kind)

    def astype(self, dtype: DTypeLike) -> Array:
        """The rounded parameter as an array."""
        return _round(self.value.astype(jnp.float32), self.kind).astype(dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _round(x: Array, kind: str) -> Array:
    # XLA may leave out a conversion there and back, but not `reduce_precision`, which knows the
    # subnormal numbers of no dtype: those of float16 are multiples of the smallest one.
    rounded = jax.lax.reduce_precision(x, 8, jnp.finfo(kind).nmant)
    if kind == "float16":
        least = float(jnp.finfo(kind).smallest_subnormal)
        subnormal = jnp.abs(x) < jnp.finfo(kind).smallest_normal
        rounded = jnp.where(subnormal, jnp.round(x / least) * least, rounded)
    return rounded.astype(kind).astype(x.dtype)


@_round.defjvp
def _round_jvp(kind: str, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return _round(primals[0], kind), tangents[0]
