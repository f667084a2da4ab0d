"""The gated delta rule over packed rows with shared prompts, chunk by chunk.

Yang et al. 2024, arXiv:2412.06464. A sequence is a prompt followed by one of its branches; along
it, from S_0 = 0 [dk, dv],

    S <- exp(g_t) S,    S <- S + k_t (beta_t (v_t - S' k_t))',    o_t = S' q_t.

Within a chunk, let c_i be the sum of g over the tokens of the chunk that token i sees, itself
included, and D_ij = exp(c_i - c_j) where i sees j, else 0. With S the state before the chunk on i's
own sequence and r_i = exp(c_i), or 0 if i's sequence starts in the chunk,

    u_i = beta_i (v_i - r_i S' k_i - sum_(j < i) D_ij (k_i k_j) u_j),
    o_i = r_i S' q_i + sum_(j <= i) D_ij (q_i k_j) u_j.

A chunk may hold several sequences, and begin inside a branch while the next branch of its prompt
starts in it. So two states pass from chunk to chunk: after the last token, and after the last token
of its prompt. Everything is float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ...core.types import Array
from ..attention.mask import RowMask, Tokens

CHUNK = 64


class _Inputs(NamedTuple):
    """The arguments of `delta_rule` by chunk, [K, H, N, C, ...] float32 each."""

    q: Array
    k: Array
    v: Array
    beta: Array
    g: Array


class _Marks(NamedTuple):
    """Which tokens of a chunk see what, and what they leave; float32 but for `sees`."""

    sees: Array  # [K, N, C, C] bool
    reads: Array  # [K, N, C, states]  1 where a token reads a state from before the chunk
    leaves: Array  # [K, N, states, C]  1 where a state after the chunk includes a token
    keeps: Array  # [K, N, states, states]  1 where a state after the chunk follows one from before


def delta_rule(
    q: Array, k: Array, v: Array, beta: Array, g: Array, rows: RowMask, state: Array | None = None,
    *, chunk: int = CHUNK,
) -> tuple[Array, Array]:  # fmt: skip
    """The outputs of the gated delta rule, and the state after the last token.

    Args:
      q: queries [K, L, H, dk].
      k: keys [K, L, H, dk].
      v: values [K, L, H, dv].
      beta: strengths of the writes, 0 to 1, [K, L, H].
      g: logarithms of the decays, at most 0, [K, L, H].
      rows: the mask of the rows. With `branches` 1 only one state passes between chunks, and the
        result is NaN in any further branch.
      state: the state [K, H, dk, dv] before segment 1 of each row; None: zeros.
      chunk: tokens of a chunk.

    Returns:
      Outputs [K, L, H, dv], finite and meaningless at padding, and a state [K, H, dk, dv]; float32.
    """
    length = q.shape[1]
    chunk = min(chunk, length)
    count = -(-length // chunk)

    def cut(x: Array) -> Array:
        """[K, L, ...] -> [K, N, C, ...], padded on the left."""
        x = jnp.pad(x, ((0, 0), (count * chunk - length, 0), *((0, 0),) * (x.ndim - 2)))
        return x.reshape(x.shape[0], count, chunk, *x.shape[2:])

    def by_head(x: Array) -> Array:
        """[K, L, H, ...] -> [K, H, N, C, ...] float32."""
        return jnp.moveaxis(cut(x.astype(jnp.float32)), 3, 1)

    inputs = _Inputs(*map(by_head, (q, k, v, beta, g)))
    with jax.default_matmul_precision("highest"):
        out, last = _by_chunk(inputs, _marks(rows, cut), state)
    out = jnp.moveaxis(out, 1, 3).reshape(out.shape[0], count * chunk, *v.shape[2:])
    out = out[:, count * chunk - length :]
    if rows.branches == 1:
        out = jnp.where((rows.branch > 1)[:, :, None, None], jnp.nan, out)
    return out, last


def _by_chunk(inputs: _Inputs, marks: _Marks, state: Array | None) -> tuple[Array, Array]:
    """The outputs [K, H, N, C, dv], and the last state."""
    q, k, v, beta, g = inputs
    sees, reads, leaves, keeps = (x[:, None] for x in marks)  # with an axis of heads
    c = jnp.einsum("...ij,...j->...i", sees.astype(jnp.float32), g)
    # exp(c_i - c_j) would overflow, and so give NaN gradients, where i does not see j.
    decay = jnp.exp(jnp.where(sees, c[..., :, None] - c[..., None, :], -jnp.inf))
    after = jnp.einsum("...sj,...j->...s", leaves, g)
    write = leaves * jnp.exp(jnp.where(leaves > 0, after[..., None] - c[..., None, :], 0.0))
    kept = keeps * jnp.exp(after)[..., None]
    read = reads * jnp.exp(c)[..., None]

    system = jnp.tril(beta[..., None] * decay * jnp.einsum("...id,...jd->...ij", k, k), -1)
    by_state = beta[..., None, None] * read[..., None] * k[..., None, :]
    right = [beta[..., None] * v, by_state.reshape(*k.shape[:-1], -1)]
    solved = unit_lower_inverse(system) @ jnp.concatenate(right, -1)
    own, from_state = jnp.split(solved, [v.shape[-1]], -1)
    writes = jnp.einsum("...sj,...jd->...sdj", write, k)

    def step(states: Array, now: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
        own, from_state, writes, kept = now
        flat = states.reshape(*states.shape[:2], -1, states.shape[-1])
        u = own - from_state @ flat
        following = jnp.einsum("...st,...tdv->...sdv", kept, states)
        following += jnp.einsum("...sdj,...jv->...sdv", writes, u)
        return following, (flat, u)

    shape = (*q.shape[:2], reads.shape[-1], q.shape[-1], v.shape[-1])
    start = jnp.zeros(shape) if state is None else jnp.broadcast_to(state[:, :, None], shape)
    chunks = [jnp.moveaxis(x, 2, 0) for x in (own, from_state, writes, kept)]
    last, (states, u) = jax.lax.scan(step, start, tuple(chunks))
    states, u = (jnp.moveaxis(x, 0, 2) for x in (states, u))
    by_state = (read[..., None] * q[..., None, :]).reshape(*q.shape[:-1], -1)
    scores = decay * jnp.einsum("...id,...jd->...ij", q, k)
    return by_state @ states + scores @ u, last[:, :, 0]


def unit_lower_inverse(n: Array) -> Array:
    """The inverse of I + N, where N [..., C, C] is 0 on the diagonal and above.

    Blocks on the diagonal are inverted in pairs, twice as large each time: the inverse of
    [[a, 0], [b, d]] is [[1/a, 0], [-1/d b 1/a, 1/d]]. These are matrix products, fast everywhere;
    the triangular solver that jaxlib 0.10 calls is slow on a CPU, and waits forever on several.
    """
    size = 2 ** (n.shape[-1] - 1).bit_length()
    lead, rest = n.shape[:-2], size - n.shape[-1]
    padded = jnp.pad(n, (*((0, 0),) * len(lead), (0, rest), (0, rest)))
    found = jnp.ones((*lead, size, 1, 1), n.dtype)  # [..., blocks, width, width]
    while (width := found.shape[-1]) < size:
        pairs = size // width // 2
        blocks = padded.reshape(*lead, pairs, 2, width, pairs, 2, width)
        below = jnp.diagonal(blocks[..., 1, :, :, 0, :], axis1=-4, axis2=-2)
        below = jnp.moveaxis(below, -1, -3)
        first, second = found[..., 0::2, :, :], found[..., 1::2, :, :]
        corner = -second @ below @ first
        upper = jnp.concatenate([first, jnp.zeros_like(first)], -1)
        found = jnp.concatenate([upper, jnp.concatenate([corner, second], -1)], -2)
    return found[..., 0, : n.shape[-1], : n.shape[-1]]


def _marks(rows: RowMask, cut: Callable[[Array], Array]) -> _Marks:
    """The marks of rows cut into chunks; a state before the row belongs to its segment 1."""
    place = jnp.broadcast_to(jnp.arange(rows.segment.shape[1]), rows.segment.shape)
    several = rows.branches > 1
    branch = rows.branch if several else jnp.zeros_like(rows.branch)
    tokens = Tokens(cut(rows.segment), cut(branch), cut(rows.positions), cut(place))
    last = jax.tree.map(lambda x: x[:, :, -1:], tokens)
    first = {"segment": 1, "branch": 0}
    came = Tokens(*(
        jnp.pad(x[:, :-1], ((0, 0), (1, 0), (0, 0)), constant_values=first.get(name, 0))
        for name, x in last._asdict().items()
    ))  # fmt: skip

    def follows(now: Tokens) -> Array:
        """Whether tokens read the state after the last token before, or after its prompt."""
        same = now.segment == came.segment
        own = same & (now.branch == came.branch)
        return jnp.stack([own, same & ~own] if several else [same], -1)

    queries, keys = (jax.tree.map(lambda x, i=i: jnp.expand_dims(x, i), tokens) for i in (3, 2))
    sees = queries.see(keys)
    in_prompt = (tokens.segment == last.segment) & (tokens.branch == 0) & (tokens.segment != 0)
    leaves = [sees[:, :, -1], in_prompt] if several else [sees[:, :, -1]]
    keeps = [follows(last)[:, :, 0]]
    if several:
        same = last.segment == came.segment
        keeps.append(jnp.concatenate([jnp.zeros_like(same), same], -1))
    marks = follows(tokens), jnp.stack(leaves, 2), jnp.stack(keeps, 2)
    return _Marks(sees, *(x.astype(jnp.float32) for x in marks))
