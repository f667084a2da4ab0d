"""Which position of a packed row sees which: the mask that every attention backend follows."""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from ...core.types import Array


@flax.struct.dataclass
class Packing:
    """Rows of several examples, each a prompt followed by its responses, one after another.

    A query sees a key of its own segment (not 0) that does not come after it, is in the prompt or
    in the query's own branch, and lies less than `window` positions back.
    """

    segment: Array  # [K, L] int32  example within the row; 0 is padding
    branch: Array  # [K, L] int32  0 in the prompt, r + 1 in response r
    positions: Array  # [K, L] int32  position of each token in its own sequence
    responses: int = flax.struct.field(pytree_node=False, default=2)
    """Most responses that follow one prompt. Only `splash` reads it; see there."""
    window: int | None = flax.struct.field(pytree_node=False, default=None)
    """Positions that a query sees, its own among them; None: all."""
    softcap: float | None = flax.struct.field(pytree_node=False, default=None)
    """Scores s become c tanh(s / c) before the softmax, where this is c."""

    def tokens(self) -> Tokens:
        """What decides what sees what; [K, L] each."""
        place = jnp.broadcast_to(jnp.arange(self.segment.shape[1]), self.segment.shape)
        return Tokens(self.segment, self.branch, self.positions, place)

    def visible(self) -> Array:
        """Which keys are seen by each query, [K, L, L] bool."""
        tokens = self.tokens()
        queries, keys = (
            jax.tree.map(functools.partial(jnp.expand_dims, axis=i), tokens) for i in (2, 1)
        )
        return queries.see(keys, self.window)


class Tokens(NamedTuple):
    """Tokens of packed rows; all of one shape."""

    segment: Array
    branch: Array
    position: Array
    place: Array  # in the row

    def see(self, keys: Tokens, window: int | None) -> Array:
        """Which of these queries see which keys; bool, of the shape of both together."""
        sees = (self.segment == keys.segment) & (keys.segment != 0)
        sees &= (keys.branch == 0) | (keys.branch == self.branch)
        sees &= keys.place <= self.place
        if window is not None:
            sees &= self.position - keys.position < window
        return sees


KEPT = "attention"
"""What attention takes, and what it leaves for its backward pass: not to be computed again."""


def keep(x: Array) -> Array:
    """Mark what should be kept rather than computed again."""
    return checkpoint_name(x, KEPT)
