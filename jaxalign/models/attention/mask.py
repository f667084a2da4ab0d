"""The mask of packed rows, which every attention backend follows."""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from ...core.types import Array


@flax.struct.dataclass
class RowMask:
    """Rows of several examples, each a prompt followed by its branches, one after another.

    A query sees a key of its own segment (not 0) that does not come after it, is in the prompt or
    in the query's own branch, is less than `window` positions back, and in the same `chunk`.
    """

    segment: Array  # [K, L] int32  example within the row; 0 is padding
    branch: Array  # [K, L] int32  0 in the prompt; 1, 2, ... number what follows it
    positions: Array  # [K, L] int32  position of each token in its own sequence
    branches: int = flax.struct.field(pytree_node=False, default=2)
    """Maximum number of branches per prompt. Only `splash` reads it; see there."""
    window: int | None = flax.struct.field(pytree_node=False, default=None)
    """Number of positions that a query sees, its own included; None: all."""
    chunk: int | None = flax.struct.field(pytree_node=False, default=None)
    """If set, a query sees only positions with its own multiple of this number."""
    softcap: float | None = flax.struct.field(pytree_node=False, default=None)
    """If set to c, scores s become c tanh(s / c) before the softmax."""
    scale: float | None = flax.struct.field(pytree_node=False, default=None)
    """Factor of the products of queries and keys; None: 1 / sqrt(C)."""

    def factor(self, width: int) -> float:
        """Factor of the products of queries and keys of this head width."""
        return width**-0.5 if self.scale is None else self.scale

    def tokens(self) -> Tokens:
        """The tokens of the rows, [K, L] each."""
        place = jnp.broadcast_to(jnp.arange(self.segment.shape[1]), self.segment.shape)
        return Tokens(self.segment, self.branch, self.positions, place)

    def visible(self) -> Array:
        """Whether each query sees each key, [K, L, L] bool: the dense mask."""
        tokens = self.tokens()
        queries, keys = (
            jax.tree.map(functools.partial(jnp.expand_dims, axis=i), tokens) for i in (2, 1)
        )
        return queries.see(keys, self.window, self.chunk)


class Tokens(NamedTuple):
    """The properties of tokens that decide visibility; all fields have the same shape."""

    segment: Array
    branch: Array
    position: Array
    place: Array  # index in the row

    def see(self, keys: Tokens, window: int | None = None, chunk: int | None = None) -> Array:
        """Whether these queries see these keys; bool, of the broadcast shape of both."""
        sees = (self.segment == keys.segment) & (keys.segment != 0)
        sees &= (keys.branch == 0) | (keys.branch == self.branch)
        sees &= keys.place <= self.place
        if window is not None:
            sees &= self.position - keys.position < window
        if chunk is not None:
            sees &= self.position // chunk == keys.position // chunk
        return sees


KEPT = "attention"
"""Checkpoint name of the inputs of attention and of the residuals of its backward pass."""


def keep(x: Array) -> Array:
    """Mark an array that rematerialization should keep rather than compute again."""
    return checkpoint_name(x, KEPT)
