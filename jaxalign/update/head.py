"""Hidden states and head -> token statistics, one chunk of scored positions at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..core.sharding import constrain
from ..core.stats import Row, TokenStat
from ..core.types import Array


def token_stats(
    hidden: Array,
    head: Array,
    target: Array,
    needs: Sequence[TokenStat],
    ref: tuple[Array, Array] | None = None,
    *,
    axis: str | None = "vocab",
) -> dict[str, Array]:
    """Statistics of the tokens at the scored positions of one chunk; its logits are float32.

    Args:
      hidden: last hidden states at the scored positions, [S, M, D].
      head: unembedding, [D, V], in the dtype of `hidden`, which may be bfloat16.
      target: the token that follows each position, [S, M].
      needs: statistics to compute; nothing else is.
      ref: hidden states and head of the reference, for joint statistics.
      axis: logical axis of the head's columns.

    Returns:
      {name: [S, M] float32}.
    """
    with jax.named_scope("head"):
        beside = ref and _logits(*ref, axis)
        row = Row.of(_logits(hidden, head, axis), target.reshape(-1), beside, head)
        return {s.name: s.fn(row).reshape(target.shape) for s in needs}


def _logits(hidden: Array, head: Array, axis: str | None) -> Array:
    """Logits [S * M, V]: of the shape that the product has, or XLA:CPU writes no pass in place."""
    return constrain(_project(hidden.reshape(-1, hidden.shape[-1]), head), "batch", axis)


@jax.custom_vjp
def _project(hidden: Array, head: Array) -> Array:
    """Hidden states [M, D] and head [D, V] -> float32 logits [M, V].

    The gradient of the logits is cast to the dtype of the operands, which the products of the
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


def sum_over_chunks(
    loss: Callable[[Array, Array, Any], tuple[Array, Any]],
    hidden: Array,
    head: Array,
    chunks: Any,
    *,
    of_head: bool = True,
    axis: str | None = "vocab",
) -> tuple[tuple[Array, Any], tuple[Array, Array | None]]:
    """Value and gradient of a sum over chunks, while the logits of one chunk are alive.

    Forward and backward of a chunk follow each other, so its logits are computed once: three
    matrix products in all, where a backward pass after all forward passes needs four.

    Args:
      loss: (hidden [S, M, D], head [D, V], chunk) -> (its share of the sum, auxiliary arrays).
      hidden: [G, S, M, D].
      head: [D, V].
      chunks: what else `loss` reads, each leaf with leading axis G.
      of_head: whether the head's gradient is wanted.
      axis: logical axis of the head's columns.

    Returns:
      ((sum, auxiliary arrays with leading axis G), (gradient of hidden, gradient of head or None)).
      The head's gradient is summed in float32, laid out as the head itself on the mesh.
    """
    grad = jax.value_and_grad(loss, argnums=(0, 1) if of_head else (0,), has_aux=True)

    def one(item: tuple[Array, Any]) -> Any:
        (value, aux), (d_hidden, *rest) = grad(item[0], head, item[1])
        d_head = constrain(rest[0], "embed", axis) if of_head else None
        return (value, d_head), (aux, d_hidden)

    (value, d_head), (aux, d_hidden) = accumulate(one, (hidden, chunks))
    return (value, aux), (d_hidden, d_head)


def accumulate(one: Callable[[Any], tuple[Any, Any]], items: Any) -> tuple[Any, Any]:
    """Apply `one` to each item along the leading axis; sum its first result, stack its second.

    Sums are kept in float32 and returned in the dtype of the result.
    """
    first = jax.tree.map(lambda x: x[0], items)
    if jax.tree.leaves(items)[0].shape[0] == 1:
        total, rest = one(first)
        return total, jax.tree.map(lambda x: x[None], rest)
    shapes = jax.eval_shape(one, first)[0]
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)

    def add(total: Any, item: Any) -> Any:
        summed, rest = one(item)
        return jax.tree.map(lambda a, b: a + b.astype(jnp.float32), total, summed), rest

    total, rest = jax.lax.scan(add, zero, items)
    return jax.tree.map(lambda x, s: x.astype(s.dtype), total, shapes), rest
