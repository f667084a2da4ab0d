"""Hidden states and head -> token statistics, one chunk of scored positions at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .sharding import constrain
from .stats import Row, TokenStat
from .types import Array


def token_stats(
    hidden: Array, head: Array, target: Array, needs: Sequence[TokenStat]
) -> dict[str, Array]:
    """Statistics of the tokens at the scored positions of one chunk; its logits are float32.

    Args:
      hidden: last hidden states at the scored positions, [S, M, D].
      head: unembedding, [D, V], in the dtype of `hidden`, which may be bfloat16.
      target: the token that follows each position, [S, M].
      needs: statistics to compute; nothing else is.

    Returns:
      {name: [S, M] float32}.
    """
    logits = _project(hidden.reshape(-1, hidden.shape[-1]), head).reshape(*target.shape, -1)
    logits = constrain(logits, "batch", None, "vocab")
    row = Row.of(logits, target)
    return {s.name: s.fn(row) for s in needs}


@jax.custom_vjp
def _project(hidden: Array, head: Array) -> Array:
    """Hidden states [M, D] and head [D, V] -> float32 logits [M, V].

    The gradient of the logits is cast to the dtype of the operands, which the products of the
    backward pass then have too; they accumulate in float32.
    """
    return jnp.dot(hidden, head, preferred_element_type=jnp.float32)


def _project_fwd(hidden: Array, head: Array) -> tuple[Array, tuple[Array, Array]]:
    return _project(hidden, head), (hidden, head)


def _project_bwd(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    hidden, head = saved
    g = g.astype(hidden.dtype)
    # The transpose on its own: within a product as wide as V it doubles XLA:CPU's time.
    left = jax.lax.platform_dependent(
        hidden.T, cpu=jax.lax.optimization_barrier, default=lambda t: t
    )
    return jax.lax.dot_general(g, head, (((1,), (1,)), ((), ()))), left @ g


_project.defvjp(_project_fwd, _project_bwd)


def sum_over_chunks(
    loss: Callable[[Array, Array, Any], tuple[Array, Any]], hidden: Array, head: Array, chunks: Any
) -> tuple[tuple[Array, Any], tuple[Array, Array]]:
    """Value and gradient of a sum over chunks, while the logits of one chunk are alive.

    Forward and backward of a chunk follow each other, so its logits are computed once: three
    matrix products in all, where a backward pass after all forward passes needs four.

    Args:
      loss: (hidden [S, M, D], head [D, V], chunk) -> (its share of the sum, auxiliary arrays).
      hidden: [G, S, M, D].
      head: [D, V].
      chunks: what else `loss` reads, each leaf with leading axis G.

    Returns:
      ((sum, auxiliary arrays with leading axis G), (gradient of hidden, gradient of head)).
      The head's gradient is summed in float32, laid out as the head itself on the mesh.
    """
    grad = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)

    def one(item: tuple[Array, Any]) -> Any:
        (value, aux), (d_hidden, d_head) = grad(item[0], head, item[1])
        return (value, constrain(d_head, "embed", "vocab")), (aux, d_hidden)

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
