"""Which position of a packed row sees which: the mask that every attention backend follows."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from ..types import Array


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

    def visible(self, start: int = 0, end: int | None = None) -> Array:
        """Which keys 0 ... end - 1 are seen by queries start ... end - 1.

        Args:
          start: first query.
          end: one past the last query; None: L.

        Returns:
          [K, end - start, end] bool.
        """
        end = self.segment.shape[1] if end is None else end
        q = jax.tree.map(lambda x: x[:, start:end, None], self)
        k = jax.tree.map(lambda x: x[:, None, :end], self)
        sees = (q.segment == k.segment) & (k.segment != 0)
        sees &= (k.branch == 0) | (k.branch == q.branch)
        sees &= jnp.arange(end) <= jnp.arange(start, end)[:, None]
        if self.window is not None:
            sees &= q.positions - k.positions < self.window
        return sees


KEPT = "attention"
"""What attention leaves for its backward pass, by name, for rematerialisation to spare."""


def keep(x: Array) -> Array:
    """Mark what should be kept rather than computed again."""
    return checkpoint_name(x, KEPT)
