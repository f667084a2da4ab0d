"""Attention in plain XLA, a block of queries at a time.

A block meets the keys up to its own end and no others, so the upper triangle is never computed.
The backward pass computes the probabilities again, as flash attention does (Dao et al. 2022,
arXiv:2205.14135); between the passes only one number per query and head is kept beside q, k and v.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..types import Array
from .packing import Packing, keep

BLOCKS = 16
"""Most blocks of a row: each is a piece of the program that is compiled."""
HIDDEN = -1e30
"""Score of a key that is not seen."""
LOWEST = -1e20
"""Least maximum of a row of scores. So far above `HIDDEN` that a query without keys has p = 0."""


@jax.custom_vjp
def blocked(q: Array, k: Array, v: Array, packing: Packing) -> Array:
    """softmax(q k' / sqrt(C)) v over the keys that are seen; scores and sums in float32.

    Args:
      q: [K, L, H, C] queries.
      k: [K, L, G, C] keys; H is a multiple of G, and H / G neighbouring heads share a key.
      v: [K, L, G, C] values.
      packing: of the same K rows of length L.

    Returns:
      [K, L, H, C] in the dtype of `q`; 0 where a query sees nothing.
    """
    return _forward(q, k, v, packing)[0]


def _forward(q: Array, k: Array, v: Array, packing: Packing) -> tuple[Array, Any]:
    length, width = q.shape[1], q.shape[3]
    q, k, v = _grouped(q, k.shape[2]), _by_head(k), _by_head(v)
    outs, sums = [], []
    for start, end in _blocks(length):
        s = _seen(_scores(_rows(q, start, end), k[:, :, :end], packing), packing, start, end)
        most = jnp.maximum(jnp.max(s, -1, keepdims=True), LOWEST)
        p = jnp.exp(s - most)
        total = jnp.maximum(jnp.sum(p, -1, keepdims=True), 1e-30)
        out = _product(_flat(p.astype(v.dtype)), v[:, :, :end], 3, 2)
        outs.append(out.reshape(*p.shape[:-1], width) / total)
        sums.append(most + jnp.log(total))
    out = _ungrouped(jnp.concatenate(outs, 3)).astype(q.dtype)
    return out, (q, k, v, keep(jnp.concatenate(sums, 3)), packing)


def _backward(kept: Any, d_out: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, log_sum, packing = kept
    d_out = _grouped(d_out, k.shape[1])
    scale = q.shape[-1] ** -0.5
    d_q = []
    d_k, d_v = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for start, end in _blocks(q.shape[3]):
        rows, d_rows = _rows(q, start, end), _rows(d_out, start, end)
        keys = k[:, :, :end]
        s = _scores(rows, keys, packing)
        p = jnp.exp(_seen(s, packing, start, end) - log_sum[:, :, :, start:end])
        d_p = _product(_flat(d_rows), v[:, :, :end], 3, 3).reshape(p.shape)
        d_s = p * (d_p - jnp.sum(p * d_p, -1, keepdims=True))
        if packing.softcap is not None:
            d_s = d_s * (1 - jnp.square(s / packing.softcap))
        d_s = _flat((scale * d_s).astype(q.dtype))
        d_q.append(_product(d_s, keys, 3, 2).reshape(rows.shape))
        d_k = d_k.at[:, :, :end].add(_product(d_s, _flat(rows), 2, 2))
        d_v = d_v.at[:, :, :end].add(_product(_flat(p.astype(v.dtype)), _flat(d_rows), 2, 2))
    d_q = _ungrouped(jnp.concatenate(d_q, 3))
    back = (_by_head(d_k).astype(k.dtype), _by_head(d_v).astype(v.dtype))
    return d_q.astype(q.dtype), *back, None


blocked.defvjp(_forward, _backward)


def _blocks(length: int) -> list[tuple[int, int]]:
    """(first query, one past the last) of each block: 64, or 128 and its multiples beyond 512."""
    size = 64 if length <= 512 else 128 * -(-length // (128 * BLOCKS))
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _scores(q: Array, k: Array, packing: Packing) -> Array:
    """Queries [K, G, H/G, n, C], keys [K, G, m, C] -> scores [K, G, H/G, n, m], float32."""
    s = _product(_flat(q), k, 3, 3).reshape(*q.shape[:-1], k.shape[2]) * q.shape[-1] ** -0.5
    return s if packing.softcap is None else packing.softcap * jnp.tanh(s / packing.softcap)


def _seen(s: Array, packing: Packing, start: int, end: int) -> Array:
    return jnp.where(packing.visible(start, end)[:, None, None], s, HIDDEN)


def _product(a: Array, b: Array, of_a: int, of_b: int) -> Array:
    """Sum over one axis of each; the first two axes of both are batches. float32."""
    axes = (((of_a,), (of_b,)), ((0, 1), (0, 1)))
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def _rows(x: Array, start: int, end: int) -> Array:
    return x[:, :, :, start:end]


def _flat(x: Array) -> Array:
    """Merge queries with the heads that share a key: [K, G, H/G, n, c] -> [K, G, H/G n, c]."""
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _by_head(x: Array) -> Array:
    """[K, L, G, C] <-> [K, G, L, C]."""
    return x.transpose(0, 2, 1, 3)


def _grouped(x: Array, groups: int) -> Array:
    """[K, L, H, C] -> [K, G, H/G, L, C]."""
    return x.reshape(*x.shape[:2], groups, -1, x.shape[-1]).transpose(0, 2, 3, 1, 4)


def _ungrouped(x: Array) -> Array:
    """[K, G, H/G, L, C] -> [K, L, H, C]."""
    rows, groups, per_group, length, width = x.shape
    return x.transpose(0, 3, 1, 2, 4).reshape(rows, length, groups * per_group, width)
