"""Forward, statistics, loss, gradient, update: exact for any number of microbatches."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from .batch import Batch
from .head import accumulate, sum_over_chunks, token_stats
from .objective import Objective
from .sharding import constrain, replicated
from .stats import reduce_tokens
from .types import Array, Metrics, SequenceStats, select_rows

Params = Any
Forward = Callable[[Params, Array, Array, Array, Array], tuple[Array, Array]]
"""(params, ids, positions, segment, branch; [K, L] each) -> (hidden [K, L, D], head [D, V])."""


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes. Donated to the step and checkpointed whole."""

    params: Params
    opt_state: Any
    step: Any  # [] int32, updates made
    objective_state: Any


@dataclasses.dataclass(frozen=True)
class Task:
    """What is being minimised, by which model: the static part of a step."""

    objective: Objective
    hyper: dict[str, Any]
    forward: Forward
    trains_head: bool = True  # whether the head depends on the parameters that are trained

    def __post_init__(self):
        self.objective.bind(**self.hyper)  # an unknown hyper-parameter raises here, not in a trace

    def beside(self, frozen: Params | None) -> Task:
        """The same task whose `forward` takes these parameters first; itself where there are none.

        Called where `frozen` is an argument of the jitted function, they are no constant of it.
        """
        if frozen is None:
            return self
        return dataclasses.replace(self, forward=functools.partial(self.forward, frozen))


def scored_hidden(task: Task, params: Params, cells: Batch) -> tuple[Array, Array]:
    """One pass of a microbatch, [S, ...], through the body.

    Returns:
      The hidden states at the scored positions, [G, S, M, D], and the head, [D, V].
    """
    s, k, length = cells.ids.shape
    rows = (cells.ids, cells.positions, cells.segment, cells.branch)
    rows = (constrain(x.reshape(s * k, length), "batch", None) for x in rows)
    hidden, head = task.forward(params, *rows)
    hidden = constrain(hidden.reshape(s, k * length, -1), "batch", None, None)
    return jnp.moveaxis(jax.vmap(lambda h, i: h[i])(hidden, cells.source), 1, 0), head


class Chunk(NamedTuple):
    """The examples whose logits are alive together; G of them in a microbatch."""

    target: Array  # [S, M]
    slot: Array  # [S, M]
    mask: Array  # [S, b/G, R, T]

    @classmethod
    def of(cls, cells: Batch) -> Chunk:
        """The chunks of a microbatch, on a leading axis G."""
        target, slot = (jnp.moveaxis(x, 1, 0) for x in (cells.target, cells.slot))
        return cls(target, slot, _cut(cells.mask, cells.target.shape[1]))


def _cut(x: Array, chunks: int) -> Array:
    """Examples [S, b, ...] -> by chunk, [G, S, b/G, ...]."""
    return jnp.moveaxis(x.reshape(x.shape[0], chunks, -1, *x.shape[2:]), 1, 0)


def _join(x: Array) -> Array:
    """The inverse of `_cut`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def chunk_stats(task: Task, hidden: Array, head: Array, chunk: Chunk) -> SequenceStats:
    """Hidden states at scored positions, [S, M, D] -> statistics with leading axes [S, b/G, R]."""
    token = token_stats(hidden, head, chunk.target, task.objective.needs)
    return reduce_tokens({k: scatter(v, chunk) for k, v in token.items()}, chunk.mask)


def scatter(values: Array, chunk: Chunk) -> Array:
    """Values at scored positions, [S, M] -> the same by example and response, [S, b/G, R, T]."""
    s, b, r, t = chunk.mask.shape
    blank = jnp.zeros((s, b * r * t), values.dtype)
    put = jax.vmap(lambda x, i, v: x.at[i].set(v, mode="drop"))
    return put(blank, chunk.slot, values).reshape(s, b, r, t)


def sequence_stats(task: Task, params: Params, cells: Batch) -> SequenceStats:
    """One forward pass over a microbatch, [S, ...] -> statistics with leading axes [S, b, R]."""
    hidden, head = scored_hidden(task, params, cells)
    stats = jax.lax.map(lambda x: chunk_stats(task, x[0], head, x[1]), (hidden, Chunk.of(cells)))
    return jax.tree.map(_join, stats)


def cached_stats(batch: Batch) -> SequenceStats | None:
    """The reference statistics that travel with a batch, if any; leading axes as the mask's."""
    return reduce_tokens(batch.ref, batch.mask) if batch.ref else None


@flax.struct.dataclass
class Side:
    """What the loss reads besides the policy; never differentiated. Any leading axes, alike."""

    ref: SequenceStats | None
    columns: dict[str, Array]
    weight: Array

    @classmethod
    def of(cls, batch: Batch, ref: SequenceStats | None) -> Side:
        """That of a batch, or of a microbatch."""
        return cls(ref, batch.columns | {"weight": batch.weight}, batch.weight)


def _call(task: Task, policy: SequenceStats, side: Side, state: Any) -> Any:
    """The objective on statistics with leading axes [..., R], the first of them merged to [B]."""
    lead = side.weight.ndim
    policy, side = jax.tree.map(lambda x: x.reshape(-1, *x.shape[lead:]), (policy, side))
    layout = task.objective.data
    ref = None if side.ref is None else select_rows(layout, side.ref)
    bound = task.objective.bind(**task.hyper)
    return bound(policy=select_rows(layout, policy), ref=ref, batch=side.columns, state=state)


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
    task: Task, params: Params, batch: Batch, *, state: Any = None, ref_params: Params | None = None
) -> tuple[tuple[Array, tuple[Metrics, Any]], Params]:
    """The loss over the global batch and its gradient, whatever the number of microbatches.

    Args:
      task: objective, hyper-parameters, forward pass.
      params: the policy's parameters.
      batch: leading axes [n, S]; n microbatches are run one after another.
      state: the objective's state, if it keeps one.
      ref_params: a live reference, where `batch.ref` holds no cached statistics.

    Returns:
      ((loss, ([n, S, b] metrics, next state)), gradient).
    """
    if task.objective.couples_examples:
        return _coupled(task, params, batch, state, ref_params)
    return _separable(task, params, batch, ref_params)


def _reference(task: Task, cells: Batch, ref_params: Params | None) -> SequenceStats | None:
    if ref_params is None:
        return cached_stats(cells)
    return jax.lax.stop_gradient(sequence_stats(task, ref_params, cells))


def _separable(task: Task, params: Params, batch: Batch, ref_params: Params | None) -> Any:
    """Denominators from the masks alone, then one forward and backward pass per microbatch."""
    zero = jnp.zeros(batch.mask.shape, jnp.float32)
    blank = reduce_tokens({s.name: zero for s in task.objective.needs}, batch.mask)
    ref = (cached_stats(batch) or blank) if task.objective.uses_ref else None
    counts = [c for _, c in loss_and_metrics(task, blank, Side.of(batch, ref), None)[1][1]]

    def one(cells: Batch) -> Any:
        side = Side.of(cells, _reference(task, cells, ref_params))

        def loss(hidden: Array, head: Array, item: tuple[Chunk, Side]) -> Any:
            policy = chunk_stats(task, hidden, head, item[0])
            value, (metrics, _) = loss_and_metrics(task, policy, item[1], None, counts)
            return value, metrics

        (value, metrics), grads = _through_body(task, params, cells, loss, side)
        return (value, grads), metrics

    (value, grads), metrics = accumulate(one, batch)
    return (value, (metrics, None)), grads


def _through_body(
    task: Task, params: Params, cells: Batch, loss: Callable[..., Any], extra: Any
) -> tuple[tuple[Array, Any], Params]:
    """Value and gradient of a sum over the chunks of a microbatch.

    Args:
      task: objective, hyper-parameters, forward pass.
      params: the policy's parameters.
      cells: a microbatch.
      loss: (hidden [S, M, D], head [D, V], (`Chunk`, its part of `extra`)) -> (value, auxiliary).
      extra: what else `loss` reads, leading axes [S, b].

    Returns:
      ((value, auxiliary with leading axes [S, b]), gradient).
    """
    chunks = Chunk.of(cells), jax.tree.map(lambda x: _cut(x, cells.target.shape[1]), extra)

    def body(p: Params) -> tuple[Array, Array]:
        return scored_hidden(task, p, cells)

    if task.trains_head:
        outputs, pull = jax.vjp(body, params)
    else:
        hidden, pull, head = jax.vjp(body, params, has_aux=True)
        outputs = hidden, head
    (value, aux), grads = sum_over_chunks(loss, *outputs, chunks, of_head=task.trains_head)
    grads = pull(grads if task.trains_head else grads[0])
    return (value, jax.tree.map(_join, aux)), grads[0]


def _coupled(task: Task, params: Params, batch: Batch, state: Any, ref_params: Any) -> Any:
    """Statistics of the whole batch, the loss and its cotangents, then a vjp per microbatch."""

    def forward(cells: Batch) -> Any:
        return sequence_stats(task, params, cells), _reference(task, cells, ref_params)

    policy, ref = jax.lax.map(forward, batch)
    side = Side.of(batch, ref)
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


def train_step(
    task: Task, tx: optax.GradientTransformation, state: TrainState, batch: Batch, ref_params: Any
) -> tuple[TrainState, dict[str, Any]]:
    """One update.

    Returns:
      The next state, and `{"loss", "grad_norm": [], "sums": {metric: (sum, weight)},
      "examples": {metric: [n, S, b]}}`; the last only matters when something went wrong.
    """
    (loss, (metrics, objective_state)), grads = value_and_grad(
        task, state.params, batch, state=state.objective_state, ref_params=ref_params
    )
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    out = {
        "loss": loss,
        "grad_norm": optax.tree.norm(grads),
        "sums": {k: weighted_mean(v, batch.weight) for k, v in metrics.items()},
        "examples": metrics,
    }
    return TrainState(params, opt_state, state.step + 1, objective_state), out


def jitted_step(
    task: Task, tx: optax.GradientTransformation, abstract: TrainState, mesh: Mesh
) -> Any:
    """`train_step` jitted: (state, donated; batch, reference parameters, frozen parameters).

    Args:
      task: its forward pass takes the frozen parameters first, if there are any.
      tx: the optimizer.
      abstract: shapes and shardings of the state.
      mesh: of the devices.
    """
    shardings = jax.tree.map(lambda x: x.sharding, abstract)

    def update(state: TrainState, batch: Batch, ref_params: Any, frozen: Any) -> Any:
        return train_step(task.beside(frozen), tx, state, batch, ref_params)

    return jax.jit(update, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))


def eval_step(
    task: Task, params: Params, objective_state: Any, batch: Batch, ref_params: Any
) -> dict[str, Any]:
    """Sums of one batch, to be added up over a data set; reads the objective's state as it is.

    Returns:
      `{"terms": [(total, count)], "sums": {metric: (sum, weight)}, "statistics": (policy's,
      reference's, metrics)}`; the last by example, for diagnostics.
    """

    def forward(cells: Batch) -> Any:
        return sequence_stats(task, params, cells), _reference(task, cells, ref_params)

    policy, ref = jax.lax.map(forward, batch)
    _, (metrics, terms) = loss_and_metrics(task, policy, Side.of(batch, ref), objective_state)
    sums = {k: weighted_mean(v, batch.weight) for k, v in metrics.items()}
    return {"terms": terms, "sums": sums, "statistics": (policy, ref, metrics)}
