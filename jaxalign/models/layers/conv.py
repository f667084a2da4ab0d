"""Causal depthwise convolutions along the sequences of packed rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ...core.types import Array
from ..attention.mask import RowMask
from .projections import INIT_STD


class Conv(nnx.Module):
    """y_t = sum_m taps[M - 1 - m] x_(t - m) + bias, over the M last tokens of a sequence.

    A response in a branch follows the last tokens of its prompt, wherever these are in the row.
    Padding counts as zeros.
    """

    bias: nnx.Param | None = None

    def __init__(
        self, channels: int, size: int, rngs: nnx.Rngs, dtype: DTypeLike, *, bias: bool = False
    ):
        taps = INIT_STD * jax.random.normal(rngs.params(), (size, 1, channels), dtype)
        self.taps = nnx.Param(taps, out_sharding=(None, None, "heads"))
        if bias:
            self.bias = nnx.Param(jnp.zeros(channels, dtype), out_sharding=("heads",))

    def __call__(
        self, x: Array, rows: RowMask, held: Array | None = None
    ) -> tuple[Array, Array | None]:
        """Convolve the inputs of packed rows, or those that follow `held`.

        Args:
          x: inputs [K, L, channels].
          rows: the mask of the rows.
          held: the M - 1 inputs before `x` in generation, [K, M - 1, channels]; the rows then have
            one sequence each, padded on the left.

        Returns:
          The outputs [K, L, channels] in the dtype of `x`, and the next `held`, if it is given.
        """
        x = jnp.where((rows.segment > 0)[:, :, None], x, 0)
        taps = self.taps[...].astype(x.dtype)
        size = len(taps)
        if held is None:
            kept, earlier = None, [before(x, rows, m) for m in range(1, size)]
        else:
            whole, length = jnp.concatenate([held, x], 1), x.shape[1]
            kept = whole[:, length:]
            earlier = [whole[:, size - 1 - m :][:, :length] for m in range(1, size)]
        y = taps[-1] * x
        for m, past in enumerate(earlier, 1):
            y = y + taps[size - 1 - m] * past
        if self.bias is not None:
            y = y + self.bias[...].astype(x.dtype)
        return y, kept


def before(x: Array, rows: RowMask, steps: int) -> Array:
    """The value of each token's sequence `steps` tokens earlier, [K, L, C]; 0 before its start.

    A token of a branch has a place in the row that is further from its segment's first than its
    position says, by the tokens of the branches between it and the prompt.
    """
    length = x.shape[1]
    place = jnp.broadcast_to(jnp.arange(length), rows.segment.shape)
    first = jnp.concatenate([place[:, :1] == 0, rows.segment[:, 1:] != rows.segment[:, :-1]], 1)
    start = jax.lax.cummax(jnp.where(first, place, 0), axis=1)
    source = place - steps
    if rows.branches == 1:
        shifted = jnp.pad(x, ((0, 0), (steps, 0), (0, 0)))[:, :length]
        return jnp.where((source >= start)[:, :, None], shifted, 0)
    same = jnp.take_along_axis(rows.branch, jnp.maximum(source, 0), 1) == rows.branch
    skipped = place - start - rows.positions
    source = jnp.where(same & (source >= start), source, source - skipped)
    found = jnp.take_along_axis(x, jnp.maximum(source, 0)[:, :, None], 1)
    return jnp.where((source >= start)[:, :, None], found, 0)
