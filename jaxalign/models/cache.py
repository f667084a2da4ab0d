"""What a layer keeps of earlier tokens in generation, and what it sees of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from ..core.types import Array
from .spec import Delta, Latent, ShortConv, Softmax


class Kept(NamedTuple):
    """An array of a layer's cache, without the axes of layers and rows."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    """Logical axes."""
    dtype: Any = None
    """None: the dtype of activations."""


def shapes(kind: Softmax | Latent | Delta | ShortConv, columns: int, width: int) -> dict[str, Kept]:
    """The arrays that a layer keeps.

    Args:
      kind: the layer's attention, or what it has in its place.
      columns: positions of the keys and values.
      width: D, the width of the decoder.
    """
    if isinstance(kind, Softmax):
        kept = Kept((columns, kind.kv_heads, kind.head_width), (None, "heads", None))
        return {"keys": kept, "values": kept}
    if isinstance(kind, Latent):
        keys, values = ((columns, 1, w) for w in (kind.rank + kind.rope_width, kind.rank))
        return {"keys": Kept(keys, (None, None, None)), "values": Kept(values, (None, None, None))}
    if isinstance(kind, ShortConv):
        return {"inputs": _inputs(kind.taps, width)}
    keys = _inputs(kind.taps, kind.key_heads * kind.key_width)
    values = _inputs(kind.taps, kind.value_heads * kind.value_width)
    state = (kind.value_heads, kind.key_width, kind.value_width)
    return {
        "query": keys,
        "key": keys,
        "value": values,
        "state": Kept(state, ("heads", None, None), jnp.float32),
    }


def _inputs(taps: int, channels: int) -> Kept:
    """The last inputs of a convolution."""
    return Kept((taps - 1, channels), (None, "heads"))


def seen(kind: Softmax, mask: Array, places: Array, positions: Array) -> Array:
    """The columns of `mask` that are within a layer's window and chunk.

    Args:
      kind: the layer's attention.
      mask: the columns that each new token sees, [K, 1, L, columns] bool.
      places: how many columns back each one is, [L, columns].
      positions: positions of the new tokens, [K, L].
    """
    if kind.window is not None:
        mask = mask & (places < kind.window)
    if kind.chunk is not None:
        first = positions // kind.chunk * kind.chunk
        mask = mask & (places <= (positions - first)[:, None, :, None])
    return mask
