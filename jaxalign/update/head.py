"""Hidden states and head -> token statistics, one chunk of scored positions at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..core.sharding import constrain
from ..core.stats import LogitRow, TokenStat
from ..core.types import Array
from ..models.layers.head import Head


def token_stats(
    hidden: Array,
    head: Head,
    target: Array,
    needs: Sequence[TokenStat],
    ref: tuple[Array, Head] | None = None,
    *,
    axis: str | None = "vocab",
) -> dict[str, Array]:
    """Statistics of the tokens at the scored positions of one chunk; its logits are float32.

    Args:
      hidden: last hidden states at the scored positions, [S, M, D].
      head: the head, its matrix in the dtype of `hidden`, which may be bfloat16.
      target: the token that follows each position, [S, M].
      needs: statistics to compute; nothing else is.
      ref: hidden states and head of the reference, for joint statistics.
      axis: logical axis of the head's columns.

    Returns:
      {name: [S, M] float32}.
    """
    with jax.named_scope("head"):
        beside = ref and _logits(*ref, axis)
        row = LogitRow.of(_logits(hidden, head, axis), target.reshape(-1), beside, head.matrix)
        return {s.name: s.fn(row).reshape(target.shape) for s in needs}


def _logits(hidden: Array, head: Head, axis: str | None) -> Array:
    """Logits [S * M, V]: of the shape that the product has, or XLA:CPU writes no pass in place."""
    products = _project(hidden.reshape(-1, hidden.shape[-1]), head.matrix)
    return head.capped(constrain(products, "batch", axis))


@jax.custom_vjp
def _project(hidden: Array, head: Array) -> Array:
    """Hidden states [M, D] and matrix [D, V] -> float32 products [M, V].

    The gradient of the products is cast to the dtype of the operands, which the products of the
    backward pass then have too; they accumulate in float32.
    """
    return jnp.dot(hidden, head, preferred_element_type=jnp.float32)


def _project_fwd(hidden: Any, head: Any) -> tuple[Array, tuple[Array | None, Array]]:
    # Hidden states are kept only for the gradient of a head that has one: a frozen head has none.
    kept = hidden.value if head.perturbed else None
    return _project(hidden.value, head.value), (kept, head.value)


def _project_bwd(saved: tuple[Array | None, Array], g: Array) -> tuple[Array, Array | None]:
    hidden, head = saved
    g = g.astype(head.dtype)
    d_hidden = jax.lax.dot_general(g, head, (((1,), (1,)), ((), ())))
    if hidden is None:
        return d_hidden, None
    # The transpose on its own: within a product as wide as V it doubles XLA:CPU's time.
    left = jax.lax.platform_dependent(
        hidden.T, cpu=jax.lax.optimization_barrier, default=lambda t: t
    )
    return d_hidden, left @ g


_project.defvjp(_project_fwd, _project_bwd, symbolic_zeros=True)
