"""Forward, statistics, loss, gradient, update: exact for any number of microbatches."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from .batch import Batch
from .head import token_stats
from .objective import Objective
from .sharding import constrain
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

    def __post_init__(self):
        self.objective.bind(**self.hyper)  # an unknown hyper-parameter raises here, not in a trace

    def beside(self, frozen: Params | None) -> Task:
        """The same task whose `forward` takes these parameters first; itself where there are none.

        Called where `frozen` is an argument of the jitted function, they are no constant of it.
        """
        if frozen is None:
            return self
        return dataclasses.replace(self, forward=functools.partial(self.forward, frozen))


def sequence_stats(task: Task, params: Params, cells: Batch) -> SequenceStats:
    """One forward pass over a microbatch, [S, ...] -> statistics with leading axes [S, b, R]."""
    s, k, length = cells.ids.shape
    rows = (cells.ids, cells.positions, cells.segment, cells.branch)
    rows = (constrain(x.reshape(s * k, length), "batch", None) for x in rows)
    hidden, head = task.forward(params, *rows)
    hidden = constrain(hidden.reshape(s, k * length, -1), "batch", None, None)
    scored = jax.vmap(lambda h, i: h[i])(hidden, cells.source)
    token = token_stats(scored, head, cells.target, task.objective.needs)
    return reduce_tokens({k: scatter(v, cells) for k, v in token.items()}, cells.mask)


def scatter(values: Array, cells: Batch) -> Array:
    """Values at scored positions, [S, M] -> the same by example and response, [S, b, R, T]."""
    s, b, r, t = cells.mask.shape
    blank = jnp.zeros((s, b * r * t), values.dtype)
    put = jax.vmap(lambda x, i, v: x.at[i].set(v, mode="drop"))
    return put(blank, cells.slot, values).reshape(s, b, r, t)


def cached_stats(batch: Batch) -> SequenceStats | None:
    """The reference statistics that travel with a batch, if any; leading axes as the mask's."""
    return reduce_tokens(batch.ref, batch.mask) if batch.ref else None


@flax.struct.dataclass
class Side:
    """What the loss reads besides the policy; never differentiated. Leading axis [B]."""

    ref: SequenceStats | None
    columns: dict[str, Array]
    weight: Array


def _side(batch: Batch, ref: SequenceStats | None, lead: int) -> Side:
    columns = batch.columns | {"weight": batch.weight}
    return jax.tree.map(lambda x: _flat(x, lead), Side(ref, columns, batch.weight))


def _flat(x: Array, lead: int) -> Array:
    """Merge the first `lead` axes, which number the examples."""
    return x.reshape(-1, *x.shape[lead:])


def _call(task: Task, policy: SequenceStats, side: Side, state: Any) -> Any:
    """The objective on statistics with leading axes [B, R]."""
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
    """Statistics [B, R] -> the loss, and ([B] metrics, (total, count) of each term).

    Example weights are applied here and nowhere else. `counts` overrides the denominators, so
    that a microbatch is divided by the totals of the whole batch.
    """
    loss, metrics = _call(task, policy, side, state)[:2]
    real = side.weight > 0
    totals = [jnp.sum(jnp.where(real, side.weight * t.total, 0.0)) for t in loss.terms]
    if counts is None:
        counts = [jnp.sum(jnp.where(real, side.weight * t.count, 0.0)) for t in loss.terms]
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
      ((loss, ([B] metrics, next state)), gradient).
    """
    if task.objective.couples_examples:
        return _coupled(task, params, batch, state, ref_params)
    return _separable(task, params, batch, ref_params)


def _reference(task: Task, cells: Batch, ref_params: Params | None) -> SequenceStats | None:
    if not task.objective.uses_ref:
        return None
    if ref_params is None:
        return cached_stats(cells)
    return jax.lax.stop_gradient(sequence_stats(task, ref_params, cells))


def _separable(task: Task, params: Params, batch: Batch, ref_params: Params | None) -> Any:
    """Denominators from the masks alone, then one forward and backward pass per microbatch."""
    zero = jnp.zeros(batch.mask.shape, jnp.float32)
    blank = reduce_tokens({s.name: zero for s in task.objective.needs}, batch.mask)
    blank = jax.tree.map(lambda x: _flat(x, 3), blank)
    side = _side(batch, cached_stats(batch), 3)
    if task.objective.uses_ref and side.ref is None:
        side = dataclasses.replace(side, ref=blank)
    terms = loss_and_metrics(task, blank, side, None)[1][1]
    counts = [count for _, count in terms]

    def one(cells: Batch) -> Any:
        side = _side(cells, _reference(task, cells, ref_params), 2)

        def loss(p: Params) -> Any:
            policy = jax.tree.map(lambda x: _flat(x, 2), sequence_stats(task, p, cells))
            return loss_and_metrics(task, policy, side, None, counts)

        (value, (metrics, _)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return (value, grads), metrics

    (value, grads), metrics = _accumulate(one, batch, params)
    return (value, (metrics, None)), grads


def _coupled(task: Task, params: Params, batch: Batch, state: Any, ref_params: Any) -> Any:
    """Statistics of the whole batch, the loss and its cotangents, then a vjp per microbatch."""

    def forward(cells: Batch) -> Any:
        return sequence_stats(task, params, cells), _reference(task, cells, ref_params)

    stats, ref = jax.lax.map(forward, batch)
    side = _side(batch, ref, 3)
    policy = jax.tree.map(lambda x: _flat(x, 3), stats)
    state = next_state(task, policy, side, state)

    def loss(stats: SequenceStats) -> Any:
        policy = jax.tree.map(lambda x: _flat(x, 3), stats)
        return loss_and_metrics(task, policy, side, state)

    (value, (metrics, _)), cotangents = jax.value_and_grad(loss, has_aux=True)(stats)

    def one(args: tuple[Batch, SequenceStats]) -> Any:
        cells, cotangent = args
        _, vjp = jax.vjp(lambda p: sequence_stats(task, p, cells), params)
        return vjp(cotangent)[0], ()

    grads, _ = _accumulate(one, (batch, cotangents), params)
    return (value, (metrics, state)), grads


def _accumulate(one: Callable[[Any], Any], items: Any, params: Params) -> Any:
    """Sum the first result of `one` over the leading axis of `items`; join the second.

    Sums are kept in float32 and returned in the dtype of the parameters.
    """
    if jax.tree.leaves(items)[0].shape[0] == 1:
        return one(jax.tree.map(lambda x: x[0], items))
    shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], items))[0]
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)

    def add(total: Any, item: Any) -> Any:
        summed, rest = one(item)
        return jax.tree.map(lambda a, b: a + b.astype(jnp.float32), total, summed), rest

    total, rest = jax.lax.scan(add, zero, items)
    total = jax.tree.map(lambda x, s: x.astype(s.dtype), total, shapes)
    return total, jax.tree.map(lambda x: _flat(x, 2), rest)


def weighted_mean(values: Array, weight: Array) -> tuple[Array, Array]:
    """(sum of weight * value, sum of weight) over [B] examples; NaN: no value for this example."""
    weight = jnp.where(jnp.isnan(values), 0.0, weight)
    return jnp.sum(jnp.where(weight > 0, weight * values, 0.0)), jnp.sum(weight)


def train_step(
    task: Task, tx: optax.GradientTransformation, state: TrainState, batch: Batch, ref_params: Any
) -> tuple[TrainState, dict[str, Any]]:
    """One update.

    Returns:
      The next state, and `{"loss", "grad_norm": [], "sums": {metric: (sum, weight)},
      "examples": {metric: [B]}}`; the last only matters when something went wrong.
    """
    (loss, (metrics, objective_state)), grads = value_and_grad(
        task, state.params, batch, state=state.objective_state, ref_params=ref_params
    )
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    weight = batch.weight.reshape(-1)
    out = {
        "loss": loss,
        "grad_norm": optax.tree.norm(grads),
        "sums": {k: weighted_mean(v, weight) for k, v in metrics.items()},
        "examples": metrics,
    }
    return TrainState(params, opt_state, state.step + 1, objective_state), out


def eval_step(
    task: Task, params: Params, objective_state: Any, batch: Batch, ref_params: Any
) -> dict[str, Any]:
    """Sums of one batch, to be added up over a data set; reads the objective's state as it is.

    Returns:
      `{"terms": [(total, count)], "sums": {metric: (sum, weight)}}`.
    """

    def forward(cells: Batch) -> Any:
        return sequence_stats(task, params, cells), _reference(task, cells, ref_params)

    stats, ref = jax.lax.map(forward, batch)
    policy = jax.tree.map(lambda x: _flat(x, 3), stats)
    _, (metrics, terms) = loss_and_metrics(task, policy, _side(batch, ref, 3), objective_state)
    weight = batch.weight.reshape(-1)
    return {"terms": terms, "sums": {k: weighted_mean(v, weight) for k, v in metrics.items()}}
