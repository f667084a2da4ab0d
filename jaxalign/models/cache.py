"""What a layer keeps of earlier tokens in generation, and what it sees of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..core.sharding import constrain
from ..core.types import Array
from .spec import Delta, Latent, ShortConv, Softmax

Kind = Softmax | Latent | Delta | ShortConv
Cache = dict[str, dict[str, Array]]
"""What each stack of layers keeps of earlier tokens, by the number of its first layer.

Arrays have the leading axes [layers, rows]; keys and values, and only these, have columns."""
COLUMNED = ("keys", "values")
AXIS = 3
"""The axis of columns, which keys and values have."""


class Shared(NamedTuple):
    """Prompts, each of which as many rows one after another share."""

    cache: Cache  # [layers, prompts, ...]
    back: Array  # [K, 1, columns]; see `Model.extend`


class _Kept(NamedTuple):
    """An array of a layer's cache, without the axes of layers and rows."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    """Logical axes."""
    dtype: Any = None
    """None: the dtype of activations."""


def _shapes(kind: Kind, columns: int, width: int) -> dict[str, _Kept]:
    """The arrays that a layer keeps."""
    if isinstance(kind, Softmax):
        kept = _Kept((kind.kv_heads, columns, kind.head_width), ("heads", None, None))
        return {"keys": kept, "values": kept}
    if isinstance(kind, Latent):
        keys, values = ((1, columns, w) for w in (kind.rank + kind.rope_width, kind.rank))
        return {
            "keys": _Kept(keys, (None, None, None)),
            "values": _Kept(values, (None, None, None)),
        }
    if isinstance(kind, ShortConv):
        return {"inputs": _inputs(kind.taps, width)}
    keys = _inputs(kind.taps, kind.key_heads * kind.key_width)
    values = _inputs(kind.taps, kind.value_heads * kind.value_width)
    state = (kind.value_heads, kind.key_width, kind.value_width)
    return {
        "query": keys,
        "key": keys,
        "value": values,
        "state": _Kept(state, ("heads", None, None), jnp.float32),
    }


def _inputs(taps: int, channels: int) -> _Kept:
    """The last inputs of a convolution."""
    return _Kept((taps - 1, channels), (None, "heads"))


def blank(kind: Kind, size: tuple[int, int, int], width: int, dtype: DTypeLike) -> dict[str, Array]:
    """Zeros for a stack of layers.

    Args:
      kind: the layers' attention, or what they have in its place.
      size: numbers of layers, rows and columns.
      width: D, the width of the decoder.
      dtype: dtype of activations.
    """
    layers, rows, columns = size
    return {
        name: constrain(jnp.zeros((layers, rows, *shape), own or dtype), None, "batch", *axes)
        for name, (shape, axes, own) in _shapes(kind, columns, width).items()
    }


def put(stack: Array, new: Array, layer: Array, at: Array) -> Array:
    """A stack of keys or values with new ones of a layer, [K, L, Hk, C], from column `at` on."""
    return jax.lax.dynamic_update_slice(stack, new.swapaxes(1, 2)[None], (layer, 0, 0, at, 0))


def replaced(cache: Cache, new: Cache, source: Array) -> Cache:
    """A cache whose row k is row source[k] of `new` where source [K] is not negative."""

    def chosen(old: Array, new: Array) -> Array:
        taken = (source >= 0).reshape(1, -1, *(1,) * (old.ndim - 2))
        return jnp.where(taken, new[:, source], old)

    return jax.tree.map(chosen, cache, new)


def only(cache: Cache, *, columned: bool) -> Cache:
    """The keys and values of a cache, or else the states of its recurrent layers."""
    return {
        first: {name: x for name, x in stack.items() if (name in COLUMNED) == columned}
        for first, stack in cache.items()
    }


def widened(cache: Cache, at: Array, columns: int) -> Cache:
    """A cache of more columns, whose first columns are a ring cut open at its oldest column.

    Args:
      cache: a cache whose columns are a ring.
      at: its oldest column.
      columns: the new number of columns.
    """

    def wide(x: Array) -> Array:
        more = [(0, columns - x.shape[AXIS] if axis == AXIS else 0) for axis in range(x.ndim)]
        return jnp.pad(jnp.roll(x, -at, AXIS), more)

    wider = jax.tree.map(wide, only(cache, columned=True))
    return merged(wider, only(cache, columned=False))


def merged(some: Cache, others: Cache) -> Cache:
    """The arrays of two caches of the same layers."""
    return {first: {**some[first], **others[first]} for first in some}


def seen(kind: Softmax | Latent, back: Array, positions: Array) -> Array:
    """The columns that a layer sees, [K, L, columns] bool.

    Args:
      kind: the layer's attention.
      back: see `Model.extend`.
      positions: positions of the new tokens, [K, L].
    """
    sees = back >= 0
    if not isinstance(kind, Softmax):
        return sees
    if kind.window is not None:
        sees = sees & (back < kind.window)
    if kind.chunk is not None:
        sees = sees & (back <= (positions % kind.chunk)[:, :, None])
    return sees
