"""Forward, statistics, loss, gradient, update: exact for any number of microbatches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ..core.batch import Batch
from ..core.sharding import repeatable, replicated
from ..core.stats import reduce_tokens
from ..core.types import Array, Metrics, SequenceStats, select_rows
from ..settings import Reference
from .forward import (
    Chunk,
    Params,
    Task,
    both,
    cached_stats,
    chunk_stats,
    cut,
    join,
    reference_of,
    scored_hidden,
)
from .head import accumulate, sum_over_chunks

FIXED = Reference()


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes. Donated to the step and checkpointed whole."""

    params: Params
    opt_state: Any
    step: Any  # [] int32, updates made
    objective_state: Any
    ref_params: Params | None = None  # of a reference that moves


@flax.struct.dataclass
class Side:
    """What the loss reads besides the policy; never differentiated. Any leading axes, alike."""

    ref: SequenceStats | None
    start: SequenceStats | None
    columns: dict[str, Array]
    weight: Array
    key: Array | None

    @classmethod
    def of(cls, task: Task, batch: Batch, ref: SequenceStats | None, step: Array | int = 0) -> Side:
        """That of a batch, or of a microbatch, at an update."""
        columns = batch.columns | {"weight": batch.weight}
        start = cached_stats(batch.start, batch.mask)
        return cls(ref, start, columns, batch.weight, task.keys(batch.example, step))


def _call(task: Task, policy: SequenceStats, side: Side, state: Any) -> Any:
    """The objective on statistics with leading axes [..., R], the first of them merged to [B]."""
    lead = side.weight.ndim
    policy, side = jax.tree.map(lambda x: x.reshape(-1, *x.shape[lead:]), (policy, side))
    layout = task.objective.data
    ref = None if side.ref is None else select_rows(layout, side.ref)
    start = None if side.start is None else select_rows(layout, side.start)
    bound = task.objective.bind(**task.hyper)
    policy = select_rows(layout, policy)
    return bound(policy=policy, ref=ref, start=start, batch=side.columns, state=state, key=side.key)


def next_state(task: Task, policy: SequenceStats, side: Side, state: Any) -> Any:
    """The objective's state with this batch added; unchanged where it keeps none."""
    if task.objective.init_state is None:
        return state
    return _call(task, jax.lax.stop_gradient(policy), side, state)[2]


def loss_and_metrics(
    task: Task, policy: SequenceStats, side: Side, state: Any, counts: list[Array] | None = None
) -> tuple[Array, tuple[Metrics, list[tuple[Array, Array]]]]:
    """Statistics [..., R] -> the loss, and ([...] metrics, (total, count) of each term).

    Example weights are applied here and nowhere else. `counts` overrides the denominators, so
    that a part of the batch is divided by the totals of the whole.
    """
    loss, metrics = _call(task, policy, side, state)[:2]
    metrics = {k: v.reshape(side.weight.shape) for k, v in metrics.items()}
    weight = side.weight.reshape(-1)
    totals = [jnp.sum(jnp.where(weight > 0, weight * t.total, 0.0)) for t in loss.terms]
    if counts is None:
        counts = [jnp.sum(jnp.where(weight > 0, weight * t.count, 0.0)) for t in loss.terms]
    value = sum(
        (t / jnp.maximum(c, 1e-30) for t, c in zip(totals, counts, strict=True)), jnp.float32(0)
    )
    return value, (metrics, list(zip(totals, counts, strict=True)))


def value_and_grad(
    task: Task,
    params: Params,
    batch: Batch,
    *,
    state: Any = None,
    ref_params: Params | None = None,
    step: Array | int = 0,
) -> tuple[tuple[Array, tuple[Metrics, Any]], Params]:
    """The loss over the global batch and its gradient, whatever the number of microbatches.

    Args:
      task: objective, hyper-parameters, forward pass.
      params: the policy's parameters.
      batch: leading axes [n, S]; n microbatches are run one after another.
      state: the objective's state, if it keeps one.
      ref_params: a live reference, where `batch.ref` holds no cached statistics.
      step: updates made before, for what the objective draws.

    Returns:
      ((loss, ([n, S, b] metrics, next state)), gradient).
    """
    if task.objective.couples_examples:
        return _coupled(task, params, batch, state, ref_params, step)
    return _separable(task, params, batch, ref_params, step)


def _separable(
    task: Task, params: Params, batch: Batch, ref_params: Params | None, step: Array | int
) -> Any:
    """Denominators from the masks alone, then one forward and backward pass per microbatch."""
    zero = jnp.zeros(batch.mask.shape, jnp.float32)
    read = (*task.objective.needs, *task.objective.layers)
    blank = reduce_tokens({s.name: zero for s in read}, batch.mask)
    ref = (cached_stats(batch.ref, batch.mask) or blank) if task.objective.uses_ref else None
    counts = [c for _, c in loss_and_metrics(task, blank, Side.of(task, batch, ref), None)[1][1]]

    def one(cells: Batch) -> Any:
        ref, beside = reference_of(task, cells, ref_params)
        side = Side.of(task, cells, ref, step)
        ref_hidden, ref_head = beside or (None, None)

        def loss(hidden: Array, head: Array, item: tuple[Chunk, Side]) -> Any:
            policy = chunk_stats(task, hidden, head, item[0], ref_head)
            value, (metrics, _) = loss_and_metrics(task, policy, item[1], None, counts)
            return value, metrics

        (value, metrics), grads = _through_body(task, params, cells, loss, side, ref_hidden)
        return (value, grads), metrics

    (value, grads), metrics = accumulate(one, batch)
    return (value, (metrics, None)), grads


def _through_body(
    task: Task,
    params: Params,
    cells: Batch,
    loss: Callable[..., Any],
    extra: Any,
    ref_hidden: Array | None = None,
) -> tuple[tuple[Array, Any], Params]:
    """Value and gradient of a sum over the chunks of a microbatch.

    Args:
      task: objective, hyper-parameters, forward pass.
      params: the policy's parameters.
      cells: a microbatch.
      loss: (hidden [S, M, D], head [D, V], (`Chunk`, its part of `extra`)) -> (value, auxiliary).
      extra: what else `loss` reads, leading axes [S, b].
      ref_hidden: what a `Chunk` holds of the reference.

    Returns:
      ((value, auxiliary with leading axes [S, b]), gradient).
    """
    by_chunk = jax.tree.map(lambda x: cut(x, cells.target.shape[1]), extra)
    chunks = Chunk.of(cells, ref_hidden), by_chunk

    def body(p: Params) -> tuple[Array, Array]:
        return scored_hidden(task, p, cells)

    if task.trains_head:
        outputs, pull = jax.vjp(body, params)
    else:
        hidden, pull, head = jax.vjp(body, params, has_aux=True)
        outputs = hidden, head
    (value, aux), grads = sum_over_chunks(
        loss, *outputs, chunks, of_head=task.trains_head, axis=task.head_axis
    )
    grads = pull(grads if task.trains_head else grads[0])
    return (value, jax.tree.map(join, aux)), grads[0]


def _coupled(
    task: Task, params: Params, batch: Batch, state: Any, ref_params: Any, step: Array | int
) -> Any:
    """Statistics of the whole batch, the loss and its cotangents, then a vjp per microbatch."""

    def forward(cells: Batch) -> Any:
        return both(task, params, cells, ref_params)

    policy, ref = jax.lax.map(forward, batch)
    side = Side.of(task, batch, ref, step)
    state = next_state(task, policy, side, state)

    def loss(policy: SequenceStats) -> Any:
        return loss_and_metrics(task, policy, side, state)

    (value, (metrics, _)), cotangents = jax.value_and_grad(loss, has_aux=True)(policy)

    def one(args: tuple[Batch, SequenceStats]) -> Any:
        cells, cotangents = args

        def linear(hidden: Array, head: Array, item: tuple[Chunk, SequenceStats]) -> Any:
            return optax.tree.vdot(chunk_stats(task, hidden, head, item[0]), item[1]), ()

        return _through_body(task, params, cells, linear, cotangents)[1], ()

    return (value, (metrics, state)), accumulate(one, (batch, cotangents))[0]


def weighted_mean(values: Array, weight: Array) -> tuple[Array, Array]:
    """(sum of weight * value, sum of weight) over all examples; NaN: no value for this one."""
    weight = jnp.where(jnp.isnan(values), 0.0, weight)
    return jnp.sum(jnp.where(weight > 0, weight * values, 0.0)), jnp.sum(weight)


def followed(ref_params: Params, params: Params, step: Array, settings: Reference) -> Params:
    """The weights of a moving reference after update number `step`, given the policy's then."""

    def move(ref: Array, policy: Array) -> Array:
        ref32, policy32 = (x.astype(jnp.float32) for x in (ref, policy))
        return (settings.mix * policy32 + (1 - settings.mix) * ref32).astype(ref.dtype)

    due = step % settings.every == 0
    return jax.lax.cond(due, lambda r: jax.tree.map(move, r, params), lambda r: r, ref_params)


def train_step(
    task: Task,
    tx: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
    ref_params: Any,
    reference: Reference = FIXED,
) -> tuple[TrainState, dict[str, Any]]:
    """One update.

    Args:
      task: its forward pass takes parameters alone.
      tx: the optimizer.
      state: the state before.
      batch: leading axes [n, S].
      ref_params: a live reference, unless the state holds one.
      reference: when and how far the state's reference moves.

    Returns:
      The next state, and `{"loss", "grad_norm": [], "sums": {metric: (sum, weight)},
      "examples": {metric: [n, S, b]}}`; the last only matters when something went wrong.
    """
    (loss, (metrics, objective_state)), grads = value_and_grad(
        task,
        state.params,
        batch,
        state=state.objective_state,
        ref_params=ref_params if state.ref_params is None else state.ref_params,
        step=state.step,
    )
    with jax.named_scope("optimizer"):
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
    out = {
        "loss": loss,
        "grad_norm": optax.tree.norm(grads),
        "sums": {k: weighted_mean(v, batch.weight) for k, v in metrics.items()},
        "examples": metrics,
    }
    ref_params = state.ref_params
    if ref_params is not None:
        ref_params = followed(ref_params, params, state.step + 1, reference)
    return TrainState(params, opt_state, state.step + 1, objective_state, ref_params), out


def jitted_step(
    task: Task,
    tx: optax.GradientTransformation,
    abstract: TrainState,
    mesh: Mesh,
    reference: Reference = FIXED,
) -> Any:
    """`train_step` jitted: (state, donated; batch, reference parameters, frozen parameters).

    Args:
      task: its forward pass takes the frozen parameters first, if there are any.
      tx: the optimizer.
      abstract: shapes and shardings of the state.
      mesh: of the devices.
      reference: when and how far the state's reference moves, if it has one.
    """
    shardings = jax.tree.map(lambda x: x.sharding, abstract)

    def update(state: TrainState, batch: Batch, ref_params: Any, frozen: Any) -> Any:
        return train_step(task.beside(frozen), tx, state, batch, ref_params, reference)

    return jax.jit(
        update,
        donate_argnums=0,
        out_shardings=(shardings, replicated(mesh)),
        compiler_options=repeatable(mesh),
    )


def eval_step(
    task: Task, params: Params, objective_state: Any, batch: Batch, ref_params: Any
) -> dict[str, Any]:
    """Sums of one batch, to be added up over a data set; reads the objective's state as it is.

    Returns:
      `{"terms": [(total, count)], "sums": {metric: (sum, weight)}, "statistics": (policy's,
      reference's, metrics)}`; the last by example, for diagnostics.
    """

    def forward(cells: Batch) -> Any:
        return both(task, params, cells, ref_params)

    policy, ref = jax.lax.map(forward, batch)
    side = Side.of(task, batch, ref)  # what is drawn is the same at every evaluation
    _, (metrics, terms) = loss_and_metrics(task, policy, side, objective_state)
    sums = {k: weighted_mean(v, batch.weight) for k, v in metrics.items()}
    return {"terms": terms, "sums": sums, "statistics": (policy, ref, metrics)}
