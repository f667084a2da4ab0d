"""The gradient of the loss over the global batch, exact for any number of microbatches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from ..core.batch import Batch
from ..core.sharding import constrain
from ..core.stats import reduce_tokens
from ..core.types import Array, Metrics, SequenceStats
from ..models.layers.head import Head
from ..models.layers.mixture import Routing
from .forward import (
    HeadChunk,
    Params,
    Scored,
    Task,
    by_chunk,
    cached_stats,
    chunk_stats,
    join_chunks,
    policy_and_reference,
    reference_pass,
    routing_of,
    scored_hidden,
)
from .loss import Evaluated, LossInputs, evaluate_loss, next_state
from .routing import balance_gradient, balance_loss

Aux = TypeVar("Aux")
Sum = TypeVar("Sum")
ChunkLoss = Callable[[Array, Head, Any], tuple[Array, Aux]]
"""(hidden [S, M, D], head [D, V], chunk) -> (its share of a sum, auxiliary arrays)."""


class Gradient(NamedTuple):
    """The loss over the global batch, its gradient, and its metrics."""

    loss: Array  # []
    grads: Params
    metrics: Metrics  # [n, S, b] each
    state: Any  # the objective's next state; None where it keeps none
    routing: Routing | None  # of all tokens of the batch, [layers, ...]


def value_and_grad(
    task: Task,
    params: Params,
    batch: Batch,
    *,
    state: Any = None,
    ref_params: Params | None = None,
    step: Array | int = 0,
) -> Gradient:
    """The loss over the global batch and its gradient, for any number of microbatches.

    Args:
      task: the objective with its hyper-parameters, and the policy's forward pass.
      params: the policy's parameters.
      batch: leading axes [n, S]; the n microbatches run one after another.
      state: the objective's state, if it keeps one.
      ref_params: a live reference, where `batch.ref` holds no cached statistics.
      step: updates made before, for random numbers that the objective draws.
    """
    if task.objective.couples_examples:
        found = _coupled(task, params, batch, state, ref_params, step)
    else:
        found = _separable(task, params, batch, ref_params, step)
    if task.router_balance and found.routing is not None:
        added = task.router_balance * balance_loss(found.routing)
        found = found._replace(loss=found.loss + added)
    return found


def _separable(
    task: Task, params: Params, batch: Batch, ref_params: Params | None, step: Array | int
) -> Gradient:
    """Denominators from the masks alone, then one forward and backward pass per microbatch."""
    counts = _counts(task, batch)
    routing = None
    if task.router_balance and len(batch.weight) > 1:
        routing = _whole(jax.lax.map(lambda cells: routing_of(task, params, cells), batch))

    def one(cells: Batch) -> tuple[tuple[Array, Params], tuple[Metrics, Routing | None]]:
        reference = reference_pass(task, cells, ref_params)
        inputs = LossInputs.of(task, cells, reference.stats, step)
        ref_head = None if reference.scored is None else reference.scored.head

        def loss(
            hidden: Array, head: Head, item: tuple[HeadChunk, LossInputs]
        ) -> tuple[Array, Metrics]:
            chunk, inputs = item
            policy = chunk_stats(task, hidden, head, chunk, ref_head)
            evaluated = evaluate_loss(task, policy, inputs, None, counts)
            return evaluated.loss, evaluated.metrics

        found = _through_body(task, params, cells, loss, inputs, routing, reference.scored)
        return (found.value, found.grads), (found.aux, found.routing)

    (value, grads), (metrics, routed) = accumulate(one, batch)
    return Gradient(value, grads, metrics, None, _whole(routed))


def _whole(routing: Routing | None) -> Routing | None:
    """The routing of each microbatch, [n, layers, ...] -> of the batch, [layers, ...]."""
    return jax.tree.map(lambda x: x.sum(0), routing)


def _counts(task: Task, batch: Batch) -> tuple[Array, ...]:
    """The denominators of the loss: no objective lets them depend on what a model computes."""
    zero = jnp.zeros(batch.mask.shape, jnp.float32)
    read = (*task.objective.needs, *task.objective.layers)
    blank = reduce_tokens({s.name: zero for s in read}, batch.mask)
    ref = (cached_stats(batch.ref, batch.mask) or blank) if task.objective.uses_ref else None
    return evaluate_loss(task, blank, LossInputs.of(task, batch, ref), None).counts


def _coupled(
    task: Task,
    params: Params,
    batch: Batch,
    state: Any,
    ref_params: Params | None,
    step: Array | int,
) -> Gradient:
    """Statistics of the whole batch, the loss and its cotangents, then a vjp per microbatch."""
    policy, ref, routing = jax.lax.map(
        lambda cells: policy_and_reference(task, params, cells, ref_params), batch
    )
    routing = _whole(routing)
    inputs = LossInputs.of(task, batch, ref, step)
    state = next_state(task, policy, inputs, state)

    def loss(policy: SequenceStats) -> tuple[Array, Evaluated]:
        evaluated = evaluate_loss(task, policy, inputs, state)
        return evaluated.loss, evaluated

    (value, evaluated), cotangents = jax.value_and_grad(loss, has_aux=True)(policy)

    def one(item: tuple[Batch, SequenceStats]) -> tuple[Params, tuple[()]]:
        cells, cotangents = item

        def linear(
            hidden: Array, head: Head, item: tuple[HeadChunk, SequenceStats]
        ) -> tuple[Array, tuple[()]]:
            chunk, cotangents = item
            policy = chunk_stats(task, hidden, head, chunk)
            return jnp.asarray(optax.tree.vdot(policy, cotangents)), ()

        return _through_body(task, params, cells, linear, cotangents, routing).grads, ()

    grads, _ = accumulate(one, (batch, cotangents))
    return Gradient(value, grads, evaluated.metrics, state, routing)


class BodyGradient(NamedTuple, Generic[Aux]):
    """A sum over the chunks of a microbatch and its gradient."""

    value: Array  # []
    aux: Aux  # leading axes [S, b]
    grads: Params
    routing: Routing | None  # of the tokens of the microbatch, [layers, ...]


def _through_body(
    task: Task,
    params: Params,
    cells: Batch,
    loss: ChunkLoss[Aux],
    extra: Any,
    routing: Routing | None,
    reference: Scored | None = None,
) -> BodyGradient[Aux]:
    """Value and gradient of a sum over the chunks of a microbatch.

    The gradient includes the balance loss of the batch, if the task has one; the value does not.

    Args:
      task: the objective with its hyper-parameters, and the policy's forward pass.
      params: the policy's parameters.
      cells: a microbatch.
      loss: the share of one chunk; its third argument is (`HeadChunk`, its part of `extra`).
      extra: arrays that `loss` also reads, leading axes [S, b].
      routing: the routing of the whole batch; None: the microbatch is all of it.
      reference: the reference's hidden states, for joint statistics.
    """
    extra = jax.tree.map(lambda x: by_chunk(x, cells.target.shape[1]), extra)
    chunks = HeadChunk.of(cells, None if reference is None else reference.hidden), extra

    def body(p: Params) -> tuple[tuple[Array, Head | None, Routing | None], Scored]:
        scored = scored_hidden(task, p, cells)
        head = scored.head if task.trains_head else None
        balanced = scored.routing if task.router_balance else None
        return (scored.hidden, head, balanced), scored

    (hidden, _, balanced), pull, scored = jax.vjp(body, params, has_aux=True)
    found = sum_over_chunks(
        loss, hidden, scored.head, chunks, of_head=task.trains_head, axis=task.head_axis
    )
    if balanced is not None:
        slope = balance_gradient(routing or balanced)
        balanced = jax.tree.map(lambda g: task.router_balance * g, slope)
    (grads,) = pull((found.hidden, found.head, balanced))
    return BodyGradient(found.value, jax.tree.map(join_chunks, found.aux), grads, scored.routing)


class ChunkGradient(NamedTuple, Generic[Aux]):
    """A sum over chunks and its gradient."""

    value: Array  # []
    aux: Aux  # leading axis [chunks]
    hidden: Array  # [chunks, S, M, D] gradient of the hidden states
    head: Head | None  # gradient of the head, if asked for


def sum_over_chunks(
    loss: ChunkLoss[Aux],
    hidden: Array,
    head: Head,
    chunks: Any,
    *,
    of_head: bool = True,
    axis: str | None = "vocab",
) -> ChunkGradient[Aux]:
    """Value and gradient of a sum over chunks, with the logits of one chunk in memory at a time.

    The backward pass of a chunk follows its forward pass, so its logits are computed once: three
    matrix products in all, where a backward pass after all forward passes needs four. The gradient
    of the head is summed in float32, laid out on the mesh like the head.

    Args:
      loss: the share of one chunk.
      hidden: hidden states at the scored positions, [chunks, S, M, D].
      head: the head.
      chunks: arrays that `loss` also reads, leading axis [chunks].
      of_head: whether to compute the gradient of the head.
      axis: logical axis of the head's columns.
    """
    grad = jax.value_and_grad(loss, argnums=(0, 1) if of_head else (0,), has_aux=True)

    def one(item: tuple[Array, Any]) -> tuple[tuple[Array, Head | None], tuple[Aux, Array]]:
        (value, aux), (d_hidden, *rest) = grad(item[0], head, item[1])
        d_head = None
        if of_head:
            d_head = rest[0].replace(matrix=constrain(rest[0].matrix, "embed", axis))
        return (value, d_head), (aux, d_hidden)

    (value, d_head), (aux, d_hidden) = accumulate(one, (hidden, chunks))
    return ChunkGradient(value, aux, d_hidden, d_head)


def accumulate(one: Callable[[Any], tuple[Sum, Aux]], items: Any) -> tuple[Sum, Aux]:
    """Apply `one` to each item along the leading axis; sum its first result, stack its second.

    Sums are kept in float32 and returned in the dtype of the result.
    """
    first = jax.tree.map(lambda x: x[0], items)
    if jax.tree.leaves(items)[0].shape[0] == 1:
        total, rest = one(first)
        return total, jax.tree.map(lambda x: x[None], rest)
    shapes = jax.eval_shape(one, first)[0]
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)

    def add(total: Any, item: Any) -> tuple[Any, Aux]:
        summed, rest = one(item)
        return jax.tree.map(lambda a, b: a + b.astype(jnp.float32), total, summed), rest

    total, rest = jax.lax.scan(add, zero, items)
    return jax.tree.map(lambda x, s: x.astype(s.dtype), total, shapes), rest
