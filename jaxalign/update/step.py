"""One update: gradient, optimizer, next state; and the sums of an evaluation."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from .. import settings
from ..core.batch import Batch
from ..core.sharding import repeatable, replicated
from ..core.types import Array, Metrics, SequenceStats
from .forward import Numbers, Params, Task, policy_pass, reference_pass
from .gradient import Summand, Valued, sum_and_grad
from .loss import LossInputs, evaluate_loss, stage_loss, weighted_sum
from .optimizer import Rule
from .routing import routing_sums
from .state import TermState, TrainState

Sums = dict[str, tuple[Array, Array]]
"""{metric: (sum of weight * value, sum of weight)} over the examples of a batch."""


class Fixed(NamedTuple):
    """Weights that the step reads and never changes."""

    base: Params | None = None
    """The weights under adapters; none: all parameters are trained."""
    reference: Params | None = None
    """A live reference that does not move; none: it is cached, in the state, or not there."""
    others: tuple[Params | None, ...] = ()
    """The same of the other terms of a stage with several."""

    @classmethod
    def of(cls, base: Params | None, references: Sequence[Params | None]) -> Fixed:
        """The weights under adapters, and the live reference of each term."""
        first, *others = references
        return cls(base, first, tuple(others))

    def of_terms(self) -> list[Fixed]:
        """The weights that each term reads."""
        return [Fixed(self.base, reference) for reference in (self.reference, *self.others)]


class StepMetrics(NamedTuple):
    """What an update reports."""

    loss: Array  # []
    grad_norm: Array  # []
    sums: Sums
    examples: Metrics  # [n, S, b] each; read only when something went wrong


def train_step(
    tasks: Sequence[Task],
    tx: optax.GradientTransformation,
    state: TrainState,
    batches: Sequence[Batch],
    fixed: Fixed,
) -> tuple[TrainState, StepMetrics]:
    """One update by the weighted sum of the losses of all terms.

    Args:
      tasks: the objective of each term and the policy's forward pass; a base, if any, is its first
        argument.
      tx: the optimizer.
      state: the state before.
      batches: the batch of each term, leading axes [n, S].
      fixed: weights that do not change.

    Returns:
      The next state, and what to report.
    """
    found = weighted_gradient(tasks, state, batches, fixed)
    with jax.named_scope("optimizer"):
        updates, opt_state = tx.update(found.grads, state.opt_state, state.params)
        params = cast(Params, optax.apply_updates(state.params, updates))
    terms = []
    for task, own, (_, ref_params) in zip(tasks, found.terms, state.terms, strict=True):
        if ref_params is not None and task.moves is not None:
            ref_params = moved_reference(ref_params, params, state.step + 1, task.moves)
        terms.append(TermState(own.state, ref_params))
    norm = optax.tree.norm(found.grads)
    return (
        TrainState.of(params, opt_state, state.step + 1, terms),
        StepMetrics(found.loss, norm, *_reported(tasks, batches, found.terms)),
    )


class WeightedGradient(NamedTuple):
    """The weighted sum of the losses of all terms, its gradient, and the terms."""

    loss: Array  # []
    grads: Params
    terms: list[Valued]


def weighted_gradient(
    tasks: Sequence[Task], state: TrainState, batches: Sequence[Batch], fixed: Fixed
) -> WeightedGradient:
    """The gradient of the sum of weight * loss, each loss over its own batch.

    Arguments as for `train_step`.
    """
    summands = {
        task.term: Summand(
            task.with_base(fixed.base),
            batch,
            own.objective_state,
            frozen.reference if own.ref_params is None else own.ref_params,
        )
        for task, batch, own, frozen in zip(
            tasks, batches, state.terms, fixed.of_terms(), strict=True
        )
    }
    together: dict[str, list[str]] = {}
    for task in tasks:
        together.setdefault(task.batch_of or task.term, []).append(task.term)
    total, found = None, {}
    for names in together.values():
        grads, values = sum_and_grad([summands[n] for n in names], state.params, state.step)
        found |= dict(zip(names, values, strict=True))
        if len(together) > 1:
            grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
    grads = jax.tree.map(lambda g, p: g.astype(p.dtype), total, state.params)
    terms = [found[task.term] for task in tasks]
    return WeightedGradient(stage_loss(tasks, [own.loss for own in terms]), grads, terms)


def _reported(
    tasks: Sequence[Task], batches: Sequence[Batch], terms: Sequence[Valued]
) -> tuple[Sums, Metrics]:
    """The sums and the metrics of the examples of all terms, under their names."""
    sums: Sums = {}
    examples: Metrics = {}
    for task, batch, found in zip(tasks, batches, terms, strict=True):
        own = {k: weighted_sum(v, batch.weight) for k, v in found.metrics.items()}
        own |= routing_sums(found.routing)
        if task.term:
            own["loss"] = (found.loss, jnp.ones(()))
        sums |= task.named(own)
        examples |= task.named(found.metrics)
    return sums, examples


def moved_reference(
    ref_params: Params, params: Params, step: Array, reference: settings.Reference
) -> Params:
    """The weights of a moving reference after update number `step`, given the policy's then."""

    def mix(ref: Array, policy: Array) -> Array:
        ref32, policy32 = (x.astype(jnp.float32) for x in (ref, policy))
        return (reference.mix * policy32 + (1 - reference.mix) * ref32).astype(ref.dtype)

    due = step % reference.every == 0
    return jax.lax.cond(due, lambda r: jax.tree.map(mix, r, params), lambda r: r, ref_params)


class Inputs(NamedTuple):
    """The numbers of a step that are arguments of its program."""

    terms: tuple[Numbers, ...]
    learning_rate: Any  # [] float32, the highest


class Step:
    """`train_step` compiled as a function of (state, batches, fixed); the state is donated.

    Steps that differ in numbers alone share their compiled programs: hyper-parameters, the weights
    of terms, the seed and the learning rate are arguments.
    """

    def __init__(self, tasks: Sequence[Task], rule: Rule, abstract: TrainState, mesh: Mesh):
        """Describe the step; its first call compiles it.

        Args:
          tasks: the objective of each term and the policy's forward pass.
          rule: the optimizer.
          abstract: shapes and shardings of the state.
          mesh: the device mesh.
        """
        statics, numbers = zip(*(task.split() for task in tasks), strict=True)
        rate = np.float32(rule.settings.learning_rate)
        self._inputs = Inputs(numbers, rate)
        leaves, tree = jax.tree.flatten(jax.tree.map(lambda x: x.sharding, abstract))
        self._program = _step_program(statics, rule.split(), tree, tuple(leaves), mesh)

    def __call__(
        self, state: TrainState, batches: Sequence[Batch], fixed: Fixed
    ) -> tuple[TrainState, StepMetrics]:
        """One update, as `train_step`."""
        return self._program(state, self._inputs, batches, fixed)

    def lower(
        self, state: TrainState, batches: Sequence[Batch], fixed: Fixed
    ) -> jax.stages.Lowered:
        """The program for arguments of these shapes."""
        return self._program.lower(state, self._inputs, batches, fixed)


@functools.lru_cache(maxsize=16)
def _step_program(
    tasks: tuple[Task, ...], rule: Rule, tree: Any, shardings: tuple[Any, ...], mesh: Mesh
) -> jax.stages.Wrapped:
    """The program of a step, without its numbers."""

    def update(
        state: TrainState, inputs: Inputs, batches: Sequence[Batch], fixed: Fixed
    ) -> tuple[TrainState, StepMetrics]:
        each = zip(tasks, inputs.terms, strict=True)
        tx = rule.tx(inputs.learning_rate)
        return train_step(
            [task.with_numbers(numbers) for task, numbers in each], tx, state, batches, fixed
        )

    return jax.jit(
        update,
        donate_argnums=0,
        out_shardings=(jax.tree.unflatten(tree, shardings), replicated(mesh)),
        compiler_options=repeatable(mesh),
    )


class EvalSums(NamedTuple):
    """Sums over the examples of a batch, to be added up over a data set."""

    terms: tuple[tuple[Array, Array], ...]  # (total, count) of each term of the loss
    metrics: Sums


class EvalStatistics(NamedTuple):
    """What diagnostics read of a batch; leading axes [n, S, b]."""

    policy: SequenceStats
    ref: SequenceStats | None
    metrics: Metrics


def eval_step(
    task: Task, params: Params, objective_state: Any, batch: Batch, ref_params: Params | None
) -> tuple[EvalSums, EvalStatistics]:
    """Evaluate one batch; the objective's state is read as it is."""

    def measured(cells: Batch) -> tuple[SequenceStats, SequenceStats | None]:
        reference = reference_pass(task, cells, ref_params)
        return policy_pass(task, params, cells, reference).stats, reference.stats

    policy, ref = jax.lax.map(measured, batch)
    inputs = LossInputs.of(task, batch, ref)  # every evaluation draws the same random numbers
    found = evaluate_loss(task, policy, inputs, objective_state)
    sums = {k: weighted_sum(v, batch.weight) for k, v in found.metrics.items()}
    terms = tuple(zip(found.totals, found.counts, strict=True))
    return EvalSums(terms, sums), EvalStatistics(policy, ref, found.metrics)
