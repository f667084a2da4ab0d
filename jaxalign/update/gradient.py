"""The gradient of the loss over the global batch, exact for any number of microbatches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    PolicyPass,
    Scored,
    Task,
    by_chunk,
    cached_stats,
    chunk_stats,
    join_chunks,
    policy_pass,
    reference_pass,
    routing_of,
    scored_hidden,
)
from .loss import Evaluated, LossInputs, evaluate_loss, next_state, stage_loss
from .routing import balance_gradient, balance_loss

Aux = TypeVar("Aux")
Sum = TypeVar("Sum")
ChunkValue = tuple[Array, tuple[list[Array], Aux]]
"""The share of a chunk in a sum, what else is summed over chunks, and auxiliary arrays."""
ChunkLoss = Callable[[Array, Head, Any], ChunkValue[Aux]]
"""(hidden [S, M, D], head [D, V], chunk) -> `ChunkValue`."""


class Summand(NamedTuple):
    """A loss over a batch, and what it reads; several of them share their forward pass."""

    task: Task
    batch: Batch  # leading axes [n, S]; the n microbatches run one after another
    state: Any  # of the objective, if it keeps one
    ref_params: Params | None  # a live reference, where `batch.ref` has no cached statistics


class Valued(NamedTuple):
    """A loss over the global batch, and its metrics."""

    loss: Array  # []
    metrics: Metrics  # [n, S, b] each
    state: Any  # the objective's next state; None where it keeps none
    routing: Routing | None  # of all tokens of the batch, [layers, ...]


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
    grads, (found,) = sum_and_grad([Summand(task, batch, state, ref_params)], params, step)
    return Gradient(found.loss, grads, found.metrics, found.state, found.routing)


def sum_and_grad(
    summands: Sequence[Summand], params: Params, step: Array | int = 0
) -> tuple[Params, list[Valued]]:
    """The gradient of the sum of weight * loss, in one forward and backward pass, and the losses.

    Args:
      summands: the losses; several have the same responses of the same examples in their batches,
        and none of them reads the logits of a reference.
      params: the policy's parameters.
      step: updates made before, for random numbers that the objectives draw.
    """
    live = any(own.task.objective.reference == "live" for own in summands)
    assert len(summands) == 1 or not live, "each reads the logits of its own reference"
    coupled = any(own.task.objective.couples_examples for own in summands)
    grads, found = (_coupled if coupled else _separable)(summands, params, step)
    task, routing = summands[0].task, found[0].routing
    if task.router_balance and routing is not None:
        added = task.router_balance * balance_loss(routing)
        found = [own._replace(loss=own.loss + added) for own in found]
    return grads, found


def _separable(
    summands: Sequence[Summand], params: Params, step: Array | int
) -> tuple[Params, list[Valued]]:
    """Denominators from the masks alone, then one forward and backward pass per microbatch."""
    counts = [_counts(own.task, own.batch) for own in summands]
    tasks = [own.task for own in summands]
    task, routing = _reader(tasks), None
    batches = [own.batch for own in summands]
    if task.router_balance and len(batches[0].weight) > 1:
        routing = _whole(jax.lax.map(lambda cells: routing_of(task, params, cells), batches[0]))

    def one(batches: list[Batch]) -> tuple[tuple[list[Array], Params], Any]:
        each = list(zip(summands, batches, strict=True))
        references = [reference_pass(own.task, cells, own.ref_params) for own, cells in each]
        inputs = [
            LossInputs.of(own.task, cells, reference.stats, step)
            for (own, cells), reference in zip(each, references, strict=True)
        ]
        scored = references[0].scored
        ref_head = None if scored is None else scored.head

        def loss(
            hidden: Array, head: Head, item: tuple[HeadChunk, list[LossInputs]]
        ) -> ChunkValue[list[Metrics]]:
            chunk, inputs = item
            policy = chunk_stats(task, hidden, head, chunk, ref_head)
            found = [
                evaluate_loss(own.task, policy, own_inputs, None, own_counts)
                for own, own_inputs, own_counts in zip(summands, inputs, counts, strict=True)
            ]
            losses = [own.loss for own in found]
            return stage_loss(tasks, losses), (
                losses,
                [own.metrics for own in found],
            )

        found = _through_body(tasks, params, batches[0], loss, inputs, routing, scored)
        return (found.parts, found.grads), (found.aux, found.routing)

    (losses, grads), (metrics, routed) = accumulate(one, batches)
    routed = _whole(routed)
    each = zip(losses, metrics, strict=True)
    return grads, [Valued(own, values, None, routed) for own, values in each]


def _reader(tasks: Sequence[Task]) -> Task:
    """The task of the forward pass that all losses share."""
    first, *others = tasks
    return first.reading(others) if others else first


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
    summands: Sequence[Summand], params: Params, step: Array | int
) -> tuple[Params, list[Valued]]:
    """Statistics of the whole batch, the loss and its cotangents, then a vjp per microbatch."""
    tasks = [own.task for own in summands]
    task = _reader(tasks)
    batches = [own.batch for own in summands]

    def measured(batches: list[Batch]) -> tuple[PolicyPass, list[SequenceStats | None]]:
        each = zip(summands, batches, strict=True)
        references = [reference_pass(own.task, cells, own.ref_params) for own, cells in each]
        policy = policy_pass(task, params, batches[0], references[0])
        return policy, [reference.stats for reference in references]

    (policy, routing), references = jax.lax.map(measured, batches)
    routing = _whole(routing)
    each: list[tuple[Task, LossInputs, Any]] = []
    for own, ref in zip(summands, references, strict=True):
        inputs = LossInputs.of(own.task, own.batch, ref, step)
        each.append((own.task, inputs, next_state(own.task, policy, inputs, own.state)))

    def loss(policy: SequenceStats) -> tuple[Array, list[Evaluated]]:
        found = [evaluate_loss(own, policy, inputs, state) for own, inputs, state in each]
        return stage_loss(tasks, [own.loss for own in found]), found

    cotangents, evaluated = jax.grad(loss, has_aux=True)(policy)

    def one(item: tuple[Batch, SequenceStats]) -> tuple[Params, tuple[()]]:
        cells, cotangents = item

        def linear(
            hidden: Array, head: Head, item: tuple[HeadChunk, SequenceStats]
        ) -> ChunkValue[tuple[()]]:
            chunk, cotangents = item
            policy = chunk_stats(task, hidden, head, chunk)
            return jnp.asarray(optax.tree.vdot(policy, cotangents)), ([], ())

        return _through_body(tasks, params, cells, linear, cotangents, routing).grads, ()

    grads, _ = accumulate(one, (batches[0], cotangents))
    return grads, [
        Valued(own.loss, own.metrics, state, routing)
        for own, (_, _, state) in zip(evaluated, each, strict=True)
    ]


class BodyGradient(NamedTuple, Generic[Aux]):
    """A sum over the chunks of a microbatch and its gradient."""

    parts: list[Array]  # [] each
    aux: Aux  # leading axes [S, b]
    grads: Params
    routing: Routing | None  # of the tokens of the microbatch, [layers, ...]


def _through_body(
    tasks: Sequence[Task],
    params: Params,
    cells: Batch,
    loss: ChunkLoss[Aux],
    extra: Any,
    routing: Routing | None,
    reference: Scored | None = None,
) -> BodyGradient[Aux]:
    """Parts and gradient of a sum over the chunks of a microbatch.

    The gradient includes the balance loss of the batch, if the task has one; the parts do not.

    Args:
      tasks: the losses that share the policy's forward pass.
      params: the policy's parameters.
      cells: a microbatch.
      loss: the share of one chunk; its third argument is (`HeadChunk`, its part of `extra`).
      extra: arrays that `loss` also reads, leading axes [S, b].
      routing: the routing of the whole batch; None: the microbatch is all of it.
      reference: the reference's hidden states, for joint statistics.
    """
    task = tasks[0]
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
        share = stage_loss(tasks, [jnp.float32(task.router_balance)] * len(tasks))
        balanced = jax.tree.map(lambda g: share * g, slope)
    (grads,) = pull((found.hidden, found.head, balanced))
    return BodyGradient(found.parts, jax.tree.map(join_chunks, found.aux), grads, scored.routing)


class ChunkGradient(NamedTuple, Generic[Aux]):
    """A sum over chunks and its gradient."""

    value: Array  # []
    parts: list[Array]  # [] each, of which the sum has been made
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

    def one(item: tuple[Array, Any]) -> tuple[Any, tuple[Aux, Array]]:
        (value, (parts, aux)), (d_hidden, *rest) = grad(item[0], head, item[1])
        d_head = None
        if of_head:
            d_head = rest[0].replace(matrix=constrain(rest[0].matrix, "embed", axis))
        return (value, parts, d_head), (aux, d_hidden)

    (value, parts, d_head), (aux, d_hidden) = accumulate(one, (hidden, chunks))
    return ChunkGradient(value, parts, aux, d_hidden, d_head)


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
