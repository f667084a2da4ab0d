"""Products of rows with the matrices of their groups, in blocks of rows of one group."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ...core.types import Array


class Tiling(NamedTuple):
    """How a platform multiplies blocks."""

    size: int
    """Rows of a block."""
    together: int
    """Blocks that are multiplied at once, one such step after another; 0: `ragged_dot`, which has a
    kernel on TPUs. Its expansion elsewhere multiplies all rows by all matrices."""


TPU, GPU, CPU = Tiling(8, 0), Tiling(128, 32), Tiling(64, 1)


class Blocks(NamedTuple):
    """Where rows are in blocks, each of one group; blocks are sorted by group."""

    group: Array  # [blocks] the group of each block; those after the last used one have any
    place: Array  # [rows] the place of each row in all blocks, one after another; too large: none
    rows: Array  # [groups] rows of the blocks of each group
    used: Array  # [] blocks with rows


def blocks_of(groups: Array, count: int, size: int) -> Blocks:
    """Blocks for rows of these groups, each 0 ... count - 1; larger numbers have no place."""
    m = len(groups)
    order = jnp.argsort(groups)
    sizes = jnp.bincount(groups, length=count + 1)[:count]
    used = -(-sizes // size)
    ends = jnp.cumsum(used)
    # A row's place: the start of its group's blocks, and its rank within the group.
    shift = (ends - used) * size - (jnp.cumsum(sizes) - sizes)
    rank = jnp.zeros(m, jnp.int32).at[order].set(jnp.arange(m, dtype=jnp.int32))
    most = -(-m // size) + count
    place = rank + shift.at[groups].get(mode="fill", fill_value=most * size)
    owner = jnp.searchsorted(ends, jnp.arange(most), side="right")
    return Blocks(jnp.minimum(owner, count - 1), place, used * size, ends[-1])


def grouped_dot(x: Array, matrices: Array, blocks: Blocks, together: int) -> Array:
    """Rows in blocks times the matrix of their group, [in, out]; float32.

    Blocks that are not used give 0.

    Args:
      x: rows, in blocks, [blocks, size, in].
      matrices: a matrix for each group, [groups, in, out] in the dtype of `x`.
      blocks: the group of each block.
      together: see `Tiling`.

    Returns:
      [blocks, size, out] float32.
    """
    if together:
        # Whole steps: the last one may have blocks that are not used.
        more = -len(x) % together
        x, group = jnp.pad(x, ((0, more), (0, 0), (0, 0))), jnp.pad(blocks.group, (0, more))
        y: Array = _looped(together, x, matrices, group, -(-blocks.used // together))
        return y[: len(y) - more]
    flat = x.reshape(-1, x.shape[-1])
    y = jax.lax.ragged_dot(flat, matrices, blocks.rows, preferred_element_type=jnp.float32)
    inside = jnp.arange(len(flat)) < blocks.rows.sum()
    return jnp.where(inside[:, None], y, 0.0).reshape(*x.shape[:2], -1)


_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _looped(together: int, x: Array, matrices: Array, group: Array, steps: Array) -> Array:
    return _looped_fwd(together, x, matrices, group, steps)[0]


def _looped_fwd(together: int, x: Array, matrices: Array, group: Array, steps: Array):
    def one(step: Array, out: Array) -> Array:
        rows, own = (_at(y, step, together) for y in (x, group))
        return _put(out, step, _product("nbd,ndf->nbf", rows, matrices[own]))

    blank = jnp.zeros((*x.shape[:2], matrices.shape[2]), jnp.float32)
    return jax.lax.fori_loop(0, steps, one, blank), (x, matrices, group, steps)


def _looped_bwd(together: int, kept: tuple[Array, Array, Array, Array], d_out: Array):
    x, matrices, group, steps = kept
    d_out = d_out.astype(x.dtype)

    def one(step: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        d_x, d_matrices = carry
        rows, own, d = (_at(y, step, together) for y in (x, group, d_out))
        d_x = _put(d_x, step, _product("nbf,ndf->nbd", d, matrices[own]).astype(x.dtype))
        return d_x, d_matrices.at[own].add(_product("nbd,nbf->ndf", rows, d))

    blank = jnp.zeros_like(x), jnp.zeros(matrices.shape, jnp.float32)
    d_x, d_matrices = jax.lax.fori_loop(0, steps, one, blank)
    return d_x, d_matrices.astype(matrices.dtype), None, None


_looped.defvjp(_looped_fwd, _looped_bwd)


def _at(x: Array, step: Array, together: int) -> Array:
    """The blocks of a step."""
    return jax.lax.dynamic_slice_in_dim(x, step * together, together)


def _put(x: Array, step: Array, new: Array) -> Array:
    """All blocks, with the blocks of a step replaced."""
    return jax.lax.dynamic_update_slice_in_dim(x, new, step * len(new), 0)
