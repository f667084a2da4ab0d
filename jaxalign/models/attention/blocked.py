"""Attention in plain XLA, over the blocks of the mask that contain visible keys.

Each query block attends only to the key blocks that contain visible keys. Query blocks are grouped
by how many key blocks they need; each group runs in its own `fori_loop`, whose trip count depends
on the batch. The backward pass computes the probabilities again, as in flash attention (Dao et al.
2022, arXiv:2205.14135); between the passes only one number per query and head is kept in addition
to q, k and v.

Axes: K rows of `blocks` blocks of Q places; Hk key heads, with G = H / Hk query heads each.
In einsum equations i runs over the queries of all heads that share a key, j over the keys of n
blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from ...core.types import Array
from .mask import RowMask, Tokens, keep

BLOCKS = 32
"""Maximum number of blocks per row."""
HIDDEN = -1e30
"""Score of a hidden key."""
LOWEST = -1e20
"""Lower bound of the maximum of a row of scores; p = 0 for a query that sees no key."""

Residuals = tuple[Array, Array, Array, Array, RowMask, Array | None]
Slopes = tuple[Array, Array, Array, Array | None]
Carry = TypeVar("Carry")


def blocked(
    q: Array, k: Array, v: Array, mask: RowMask, sinks: Array | None = None, least: int = 1
) -> Array:
    """softmax(q k' / sqrt(C)) v over the visible keys; scores and sums in float32.

    Args:
      q: queries [K, L, H, C].
      k: keys [K, L, Hk, C]; H is a multiple of Hk, and H / Hk neighboring heads share a key.
      v: values [K, L, Hk, C].
      mask: the mask of these K rows of length L.
      sinks: a score for each head [H] float32; see `attend`.
      least: minimum block size, places; blocks of long rows are larger.

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

    scores = None if sinks is None else sinks.reshape(groups, -1)
    every = jax.tree.map(whole, mask)
    out = _attend(cut(q, groups, -1), cut(k, groups), cut(v, groups), every, scores)
    return out.reshape(rows, blocks * size, -1, width)[:, :length]


@jax.custom_vjp
def _attend(q: Array, k: Array, v: Array, mask: RowMask, sinks: Array | None) -> Array:
    """Queries [K * blocks, Q, Hk, G, C], keys and values [K * blocks, Q, Hk, C] -> as queries."""
    return _forward(q, k, v, mask, sinks)[0]


def _forward(
    q: Array, k: Array, v: Array, mask: RowMask, sinks: Array | None
) -> tuple[Array, Residuals]:
    def visit(at: Visit, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        queries, keys, values = _of_queries(q, at), _of_keys(k, at), _of_keys(v, at)
        s = jnp.where(at.seen(mask, heads), _scores(queries, keys, mask), HIDDEN)
        least = LOWEST if sinks is None else _of_heads(sinks, size)
        most = jnp.maximum(jnp.max(s, -1, keepdims=True), least)
        p = jnp.exp(s - most)
        total = jnp.sum(p, -1, keepdims=True) + (0 if sinks is None else jnp.exp(least - most))
        total = jnp.maximum(total, 1e-30)
        out, log_sums = carry
        out = _put(out, at, _product("gij,gjc->gic", p.astype(v.dtype), values) / total)
        return out, _put(log_sums, at, most + jnp.log(total))

    size, _, heads, _ = q.shape[1:]
    blank = jnp.zeros_like(q), jnp.zeros((*q.shape[:4], 1), jnp.float32)
    out, log_sums = _over_blocks(visit, blank, mask, size)
    return out, (q, k, v, keep(log_sums), mask, sinks)


def _backward(kept: Residuals, d_out: Array) -> tuple[Array, Array, Array, None, Array | None]:
    q, k, v, log_sums, mask, sinks = kept

    def visit(at: Visit, carry: Slopes) -> Slopes:
        queries, d_o, log_sum = (_of_queries(x, at) for x in (q, d_out, log_sums))
        keys, values = _of_keys(k, at), _of_keys(v, at)
        s = _scores(queries, keys, mask)
        p = jnp.exp(jnp.where(at.seen(mask, heads), s, HIDDEN) - log_sum)
        d_p = _product("gic,gjc->gij", d_o, values)
        mean = jnp.sum(p * d_p, -1, keepdims=True)
        d_s = p * (d_p - mean)
        if mask.softcap is not None:
            d_s = d_s * (1 - jnp.square(s / mask.softcap))
        d_s = (d_s * mask.factor(q.shape[-1])).astype(q.dtype)
        d_q, d_k, d_v, d_sinks = carry
        if sinks is not None and d_sinks is not None:  # its value is 0
            lost = jnp.exp(_of_heads(sinks, size) - log_sum) * mean
            d_sinks = d_sinks - lost.reshape(*sinks.shape, size).sum(-1)
        d_q = _put(d_q, at, _product("gij,gjc->gic", d_s, keys))
        d_k = _add(d_k, at, _product("gij,gic->gjc", d_s, queries))
        d_v = _add(d_v, at, _product("gij,gic->gjc", p.astype(v.dtype), d_o))
        return d_q, d_k, d_v, d_sinks

    size, _, heads, _ = q.shape[1:]
    blank = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (k, v, sinks))
    d_q, d_k, d_v, d_sinks = _over_blocks(visit, (jnp.zeros_like(q), *blank), mask, size)
    return d_q, d_k.astype(k.dtype), d_v.astype(v.dtype), None, d_sinks


_attend.defvjp(_forward, _backward)


class Visit(NamedTuple):
    """One query block, and the n key blocks that it attends to."""

    queries: Array  # []
    keys: Array  # [n]; K * blocks, a block of padding, fills up if fewer are visible
    ours: Tokens  # [Q] each
    theirs: Tokens  # [n * Q]

    def seen(self, mask: RowMask, heads: int) -> Array:
        """Whether the queries of this number of heads see the keys, [G * Q, n * Q] bool."""
        ours = jax.tree.map(lambda x: jnp.tile(x, heads)[:, None], self.ours)
        theirs = jax.tree.map(lambda x: x[None], self.theirs)
        return ours.see(theirs, mask.window, mask.chunk)


def _over_blocks(
    visit: Callable[[Visit, Carry], Carry], carry: Carry, mask: RowMask, size: int
) -> Carry:
    """Visit every query block that sees at least one key."""
    rows, length = mask.segment.shape
    blocks, total = length // size, rows * length // size

    def visible_in(row: RowMask) -> Array:
        visible = jax.tree.map(lambda x: x[None], row).visible()
        return visible.reshape(blocks, size, blocks, size).any((1, 3))

    tiles = jax.lax.map(visible_in, mask).reshape(total, blocks)
    numbers = jnp.arange(total).reshape(rows, 1, blocks).repeat(blocks, 1).reshape(-1, blocks)
    keys = jnp.sort(jnp.where(tiles, numbers, total), -1)  # block `total` is padding
    count = tiles.sum(-1)
    order = jnp.argsort(count)
    tokens = jax.tree.map(lambda x: jnp.pad(x.reshape(-1, size), ((0, 1), (0, 0))), mask.tokens())

    def visit_one(n: int, i: Array, carry: Carry) -> Carry:
        own, keys_of = order[i], keys[order[i], :n]
        ours = jax.tree.map(lambda x: x[own], tokens)
        theirs = jax.tree.map(lambda x: x[keys_of].reshape(-1), tokens)
        return visit(Visit(own, keys_of, ours, theirs), carry)

    fewer = 0
    for n in _counts(blocks):
        first, last = jnp.searchsorted(count[order], jnp.array([fewer, n]), side="right")
        carry = jax.lax.fori_loop(first, last, functools.partial(visit_one, n), carry)
        fewer = n
    return carry


def _counts(blocks: int) -> list[int]:
    """The numbers of key blocks that loops are made for, up to all blocks of a row."""
    return [n for n in (2, 3, 5, 8, 12, 16, 24) if n < blocks] + [blocks]


def _scores(queries: Array, keys: Array, mask: RowMask) -> Array:
    """Scores before the mask."""
    s = _product("gic,gjc->gij", queries, keys) * mask.factor(queries.shape[-1])
    return s if mask.softcap is None else mask.softcap * jnp.tanh(s / mask.softcap)


def _product(equation: str, a: Array, b: Array) -> Array:
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _of_heads(x: Array, size: int) -> Array:
    """A number for each head, [Hk, G], for each of its queries: [Hk, G * Q, 1]."""
    return jnp.repeat(x, size, axis=1)[..., None]


def _of_queries(x: Array, at: Visit) -> Array:
    """The query block of [K * blocks, Q, Hk, G, c], as [Hk, G * Q, c]."""
    groups, _, width = x.shape[2:]
    return x[at.queries].transpose(1, 2, 0, 3).reshape(groups, -1, width)


def _of_keys(x: Array, at: Visit) -> Array:
    """The key blocks of [K * blocks, Q, Hk, C], as [Hk, n * Q, C]."""
    groups, width = x.shape[2:]
    return x[at.keys].transpose(2, 0, 1, 3).reshape(groups, -1, width)


def _put(x: Array, at: Visit, y: Array) -> Array:
    """[K * blocks, Q, Hk, G, c] with the query block replaced by [Hk, G * Q, c]."""
    size, groups, heads, width = x.shape[1:]
    y = y.reshape(groups, heads, size, width).transpose(2, 0, 1, 3)
    return jax.lax.dynamic_update_index_in_dim(x, y.astype(x.dtype), at.queries, 0)


def _add(x: Array, at: Visit, y: Array) -> Array:
    """[K * blocks, Q, Hk, C] with [Hk, n * Q, C] added to the key blocks, except padding."""
    size, groups, width = x.shape[1:]
    y = y.reshape(groups, -1, size, width).transpose(1, 2, 0, 3)
    return x.at[at.keys].add(y, mode="drop")
