"""Attention in plain XLA, over those blocks of the mask in which anything is seen.

A block of queries meets the blocks of keys that it sees, wherever they lie in its row, and no
others. Blocks of queries that see as many are taken one after another, in a loop of their own; how
often it runs is known when the batch is. The backward pass computes the probabilities again, as
flash attention does (Dao et al. 2022, arXiv:2205.14135); between the passes only one number per
query and head is kept beside q, k and v.

Axes: K rows of N blocks of B places each. G heads of keys, and H/G heads of queries to each, C
wide. In equations i are queries, of all heads that share a key, and j the keys of n blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...core.types import Array
from .mask import Packing, Tokens, keep

BLOCKS = 32
"""Most blocks of a row."""
HIDDEN = -1e30
"""Score of a key that is not seen."""
LOWEST = -1e20
"""Least maximum of a row of scores. So far above `HIDDEN` that a query without keys has p = 0."""


def blocked(q: Array, k: Array, v: Array, packing: Packing, least: int = 1) -> Array:
    """softmax(q k' / sqrt(C)) v over the keys that are seen; scores and sums in float32.

    Args:
      q: [K, L, H, C] queries.
      k: [K, L, G, C] keys; H is a multiple of G, and H / G neighbouring heads share a key.
      v: [K, L, G, C] values.
      packing: of the same K rows of length L.
      least: fewest places of a block; it has more where a CPU is faster with more.

    Returns:
      [K, L, H, C] in the dtype of `q`; 0 where a query sees nothing.
    """
    rows, length, groups, width = k.shape
    size = max(least, 64 * -(-length // (64 * BLOCKS)))
    blocks = -(-length // size)

    def whole(x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (0, blocks * size - length), *((0, 0),) * (x.ndim - 2)))

    def cut(x: Array, *heads: int) -> Array:
        return whole(x).reshape(rows * blocks, size, *heads, width)

    out = _attend(cut(q, groups, -1), cut(k, groups), cut(v, groups), jax.tree.map(whole, packing))
    return out.reshape(rows, blocks * size, -1, width)[:, :length]


@jax.custom_vjp
def _attend(q: Array, k: Array, v: Array, packing: Packing) -> Array:
    """Queries [KN, B, G, H/G, C], keys and values [KN, B, G, C] -> the same as the queries."""
    return _forward(q, k, v, packing)[0]


def _forward(q: Array, k: Array, v: Array, packing: Packing) -> tuple[Array, Any]:
    def visit(at: Visit, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        queries, keys, values = _of_queries(q, at), _of_keys(k, at), _of_keys(v, at)
        s = jnp.where(at.seen(packing, heads), _scores(queries, keys, packing), HIDDEN)
        most = jnp.maximum(jnp.max(s, -1, keepdims=True), LOWEST)
        p = jnp.exp(s - most)
        total = jnp.maximum(jnp.sum(p, -1, keepdims=True), 1e-30)
        out, log_sums = carry
        out = _put(out, at, _product("gij,gjc->gic", p.astype(v.dtype), values) / total)
        return out, _put(log_sums, at, most + jnp.log(total))

    size, _, heads, _ = q.shape[1:]
    blank = jnp.zeros_like(q), jnp.zeros((*q.shape[:4], 1), jnp.float32)
    out, log_sums = _over_blocks(visit, blank, packing, size)
    return out, (q, k, v, keep(log_sums), packing)


def _backward(kept: Any, d_out: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, log_sums, packing = kept

    def visit(at: Visit, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        queries, d_o, log_sum = (_of_queries(x, at) for x in (q, d_out, log_sums))
        keys, values = _of_keys(k, at), _of_keys(v, at)
        s = _scores(queries, keys, packing)
        p = jnp.exp(jnp.where(at.seen(packing, heads), s, HIDDEN) - log_sum)
        d_p = _product("gic,gjc->gij", d_o, values)
        d_s = p * (d_p - jnp.sum(p * d_p, -1, keepdims=True))
        if packing.softcap is not None:
            d_s = d_s * (1 - jnp.square(s / packing.softcap))
        d_s = (d_s * q.shape[-1] ** -0.5).astype(q.dtype)
        d_q, d_k, d_v = carry
        d_q = _put(d_q, at, _product("gij,gjc->gic", d_s, keys))
        d_k = _add(d_k, at, _product("gij,gic->gjc", d_s, queries))
        d_v = _add(d_v, at, _product("gij,gic->gjc", p.astype(v.dtype), d_o))
        return d_q, d_k, d_v

    size, _, heads, _ = q.shape[1:]
    blank = jnp.zeros_like(q), jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    d_q, d_k, d_v = _over_blocks(visit, blank, packing, size)
    return d_q, d_k.astype(k.dtype), d_v.astype(v.dtype), None


_attend.defvjp(_forward, _backward)


class Visit(NamedTuple):
    """A block of queries, and the n blocks of keys that it meets."""

    queries: Array  # []
    keys: Array  # [n]; KN where fewer are seen: a block of padding, that is read from the last one
    ours: Tokens  # [B] each
    theirs: Tokens  # [nB]

    def seen(self, packing: Packing, heads: int) -> Array:
        """Which keys are seen by which queries of so many heads, [heads B, nB] bool."""
        ours = jax.tree.map(lambda x: jnp.tile(x, heads)[:, None], self.ours)
        theirs = jax.tree.map(lambda x: x[None], self.theirs)
        return ours.see(theirs, packing.window)


def _over_blocks(
    visit: Callable[[Visit, Any], Any], carry: Any, packing: Packing, size: int
) -> Any:
    """Visit every block of queries that sees anything."""
    rows, length = packing.segment.shape
    blocks, nothing = length // size, rows * length // size

    def met_in(row: Packing) -> Array:
        seen = jax.tree.map(lambda x: x[None], row).visible()
        return seen.reshape(blocks, size, blocks, size).any((1, 3))

    tiles = jax.lax.map(met_in, packing).reshape(nothing, blocks)
    numbers = jnp.arange(nothing).reshape(rows, 1, blocks).repeat(blocks, 1).reshape(-1, blocks)
    keys = jnp.sort(jnp.where(tiles, numbers, nothing), -1)
    count = tiles.sum(-1)
    order = jnp.argsort(count)
    tokens = jax.tree.map(
        lambda x: jnp.pad(x.reshape(-1, size), ((0, 1), (0, 0))), packing.tokens()
    )

    def one(n: int, i: Array, carry: Any) -> Any:
        own, met = order[i], keys[order[i], :n]
        ours = jax.tree.map(lambda x: x[own], tokens)
        theirs = jax.tree.map(lambda x: x[met].reshape(-1), tokens)
        return visit(Visit(own, met, ours, theirs), carry)

    fewer = 0
    for n in _counts(blocks):
        first, last = jnp.searchsorted(count[order], jnp.array([fewer, n]), side="right")
        carry = jax.lax.fori_loop(first, last, functools.partial(one, n), carry)
        fewer = n
    return carry


def _counts(blocks: int) -> list[int]:
    """How many blocks of keys may be met at a time: some of these, and all of a row."""
    return [n for n in (2, 3, 5, 8, 12, 16, 24) if n < blocks] + [blocks]


def _scores(queries: Array, keys: Array, packing: Packing) -> Array:
    """What the softmax is of, before the mask."""
    s = _product("gic,gjc->gij", queries, keys) * queries.shape[-1] ** -0.5
    return s if packing.softcap is None else packing.softcap * jnp.tanh(s / packing.softcap)


def _product(equation: str, a: Array, b: Array) -> Array:
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _of_queries(x: Array, at: Visit) -> Array:
    """What [KN, B, G, H/G, c] has of the block of queries, [G, H/G B, c]."""
    groups, _, width = x.shape[2:]
    return x[at.queries].transpose(1, 2, 0, 3).reshape(groups, -1, width)


def _of_keys(x: Array, at: Visit) -> Array:
    """What [KN, B, G, C] has of the blocks of keys, [G, nB, C]."""
    groups, width = x.shape[2:]
    return x[at.keys].transpose(2, 0, 1, 3).reshape(groups, -1, width)


def _put(x: Array, at: Visit, y: Array) -> Array:
    """[KN, B, G, H/G, c] with [G, H/G B, c] at the block of queries."""
    size, groups, heads, width = x.shape[1:]
    y = y.reshape(groups, heads, size, width).transpose(2, 0, 1, 3)
    return jax.lax.dynamic_update_index_in_dim(x, y.astype(x.dtype), at.queries, 0)


def _add(x: Array, at: Visit, y: Array) -> Array:
    """[KN, B, G, C] with [G, nB, C] added to the blocks of keys; nothing, where none is seen."""
    size, groups, width = x.shape[1:]
    y = y.reshape(groups, -1, size, width).transpose(1, 2, 0, 3)
    return x.at[at.keys].add(y, mode="drop")
