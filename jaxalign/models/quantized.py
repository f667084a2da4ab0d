"""Frozen matrices in 8 or 4 bits, by qwix; each layer dequantizes its own when it runs."""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..core.types import Array
from ..errors import UserError
from .layers.projections import Kernel

Kind = Literal["int8", "nf4"]
BLOCK = 64
"""Rows of a column with one scale in nf4 (Dettmers et al. 2023, arXiv:2305.14314)."""


@flax.struct.dataclass
class Quantized:
    """A `Kernel`, stacked over layers: integers and float32 scales, in a `qwix.QArray`."""

    array: Any

    def __getitem__(self, layer: Any) -> Quantized:
        """The matrix of one layer."""
        return jax.tree.map(lambda x: x[layer], self)

    def astype(self, dtype: DTypeLike) -> Array:
        """The matrix as an array, rounded once to `dtype`."""
        import qwix

        return qwix.dequantize(self.array).astype(dtype)


def is_quantized(path: tuple[str, ...], shape: tuple[int, ...], kind: Kind) -> bool:
    """Whether `quantize` replaces a parameter, which is not read: a matrix, but not of a router.

    Args:
      path: keys of the parameter in the nested dict.
      shape: the shape of the parameter.
      kind: number format.

    Raises:
      UserError: qwix is not installed, or 64 does not divide the rows.
    """
    if path[0] != "layers" or path[-1] != "kernel" or "router" in path:
        return False
    if importlib.util.find_spec("qwix") is None:
        raise UserError(f"lora.quantize: {kind} needs qwix; pip install 'jaxalign[quantize]'")
    if kind == "nf4" and shape[-2] % BLOCK:
        raise UserError(
            f"lora.quantize: nf4 takes {BLOCK} rows at a time, which does not divide the "
            f"{shape[-2]} rows of {'.'.join(path)}; use int8"
        )
    return True


def quantize(path: tuple[str, ...], leaf: Array, kind: Kind) -> Array | Kernel:
    """Quantize a parameter if `is_quantized` says so; other parameters are returned as is.

    int8 has a scale for each column, nf4 one for each 64 rows of a column; both map the largest
    magnitude to the largest number.

    Args:
      path: keys of the parameter in the nested dict.
      leaf: the parameter; a matrix is [layers, in, out], or [layers, experts, in, out].
      kind: number format.

    Raises:
      UserError: qwix is not installed, or 64 does not divide the rows.
    """
    if not is_quantized(path, leaf.shape, kind):
        return leaf
    import qwix

    rows = leaf.ndim - 2
    tiles = {rows: BLOCK} if kind == "nf4" else {}
    others = [axis for axis in range(leaf.ndim) if axis != rows]
    number = "nf4" if kind == "nf4" else jnp.int8

    @jax.jit
    def convert(x: Array) -> Any:
        x = x.astype(jnp.float32)
        return qwix.quantize(x, number, channelwise_axes=others, tiled_axes=tiles)

    return Quantized(convert(leaf))
