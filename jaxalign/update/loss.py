"""Statistics of a batch -> its loss: the objective called, its totals divided by global counts."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from ..core.batch import Batch
from ..core.types import Array, Metrics, SequenceStats, select_rows
from .forward import Task, cached_stats


@flax.struct.dataclass
class LossInputs:
    """Everything the loss reads except the policy; no gradient flows through it.

    All leaves have the same leading axes, of examples: [S, b] or [n, S, b].
    """

    ref: SequenceStats | None
    start: SequenceStats | None
    columns: dict[str, Array]  # `weight`, which is 0 for padding, and the objective's own
    key: Array | None

    @property
    def weight(self) -> Array:
        """The weight of each example; 0 for padding."""
        return self.columns["weight"]

    @classmethod
    def of(
        cls, task: Task, batch: Batch, ref: SequenceStats | None, step: Array | int = 0
    ) -> LossInputs:
        """The inputs of a batch, or of a microbatch, at an update."""
        columns = batch.columns | {"weight": batch.weight}
        start = cached_stats(batch.start, batch.mask)
        return cls(ref, start, columns, task.keys(batch.example, step))


class Evaluated(NamedTuple):
    """The value of the loss and what it was computed from."""

    loss: Array  # []
    metrics: Metrics  # leading axes of the inputs
    totals: tuple[Array, ...]  # [] of each term of the loss, summed over examples
    counts: tuple[Array, ...]  # [] what each total is divided by


def evaluate_loss(
    task: Task,
    policy: SequenceStats,
    inputs: LossInputs,
    state: Any,
    counts: tuple[Array, ...] | None = None,
) -> Evaluated:
    """The loss of the policy's statistics, with leading axes [..., R].

    Example weights are applied here and nowhere else.

    Args:
      task: the objective with its hyper-parameters.
      policy: the policy's statistics.
      inputs: everything else the objective reads.
      state: the objective's state, if it keeps one.
      counts: denominators of the whole batch, where this is a part of it; none: its own.
    """
    loss, metrics = _call(task, policy, inputs, state)[:2]
    metrics = {k: v.reshape(inputs.weight.shape) for k, v in metrics.items()}
    weight = inputs.weight.reshape(-1)
    totals = tuple(_weighted_total(term.total, weight) for term in loss.terms)
    if counts is None:
        counts = tuple(_weighted_total(term.count, weight) for term in loss.terms)
    value = sum(
        (t / jnp.maximum(c, 1e-30) for t, c in zip(totals, counts, strict=True)), jnp.float32(0)
    )
    return Evaluated(value, metrics, totals, counts)


def next_state(task: Task, policy: SequenceStats, inputs: LossInputs, state: Any) -> Any:
    """The objective's state with this batch added; unchanged where it keeps none."""
    if task.objective.init_state is None:
        return state
    return _call(task, jax.lax.stop_gradient(policy), inputs, state)[2]


def weighted_sum(values: Array, weight: Array) -> tuple[Array, Array]:
    """(sum of weight * value, sum of weight) over all examples; NaN: no value for this one."""
    weight = jnp.where(jnp.isnan(values), 0.0, weight)
    return _weighted_total(values, weight), jnp.sum(weight)


def stage_loss(tasks: Sequence[Task], losses: Sequence[Array]) -> Array:
    """The loss of a stage: the only one, or the sum of weight * loss of its terms."""
    each = zip(tasks, losses, strict=True)
    return functools.reduce(operator.add, (t.weight * x if t.term else x for t, x in each))


def _weighted_total(values: Array, weight: Array) -> Array:
    return jnp.sum(jnp.where(weight > 0, weight * values, 0.0))


def _call(task: Task, policy: SequenceStats, inputs: LossInputs, state: Any) -> tuple[Any, ...]:
    """The objective on statistics with leading axes [..., R], the first of them merged to [B]."""
    lead = inputs.weight.ndim
    policy, inputs = jax.tree.map(lambda x: x.reshape(-1, *x.shape[lead:]), (policy, inputs))
    layout = task.objective.data
    ref = None if inputs.ref is None else select_rows(layout, inputs.ref)
    start = None if inputs.start is None else select_rows(layout, inputs.start)
    return task.bound(
        policy=select_rows(layout, policy),
        ref=ref,
        start=start,
        batch=inputs.columns,
        state=state,
        key=inputs.key,
    )
