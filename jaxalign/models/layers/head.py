"""The head of a decoder, which turns hidden states into logits, or into scores."""

from __future__ import annotations

import flax.struct
import jax.numpy as jnp

from ...core.types import Array


@flax.struct.dataclass
class Head:
    """Hidden states times a matrix, and a soft cap of the products."""

    matrix: Array  # [D, V]; V is the vocabulary, or the number of scores of a reward head
    softcap: float | None = flax.struct.field(pytree_node=False, default=None)
    """If set to c, products z become c tanh(z / c)."""

    def logits(self, hidden: Array) -> Array:
        """[..., D] -> [..., V] float32."""
        return self.capped(jnp.dot(hidden, self.matrix, preferred_element_type=jnp.float32))

    def capped(self, products: Array) -> Array:
        """The logits, given the products of hidden states and the matrix."""
        if self.softcap is None:
            return products
        return self.softcap * jnp.tanh(products / self.softcap)
