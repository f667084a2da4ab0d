"""One update: gradient, optimizer, next state; and the sums of an evaluation."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from .. import settings
from ..core.batch import Batch
from ..core.sharding import repeatable, replicated
from ..core.types import Array, Metrics, SequenceStats
from .forward import Params, Task, policy_and_reference
from .gradient import value_and_grad
from .loss import LossInputs, evaluate_loss, weighted_sum
from .routing import routing_sums
from .state import TrainState

Sums = dict[str, tuple[Array, Array]]
"""{metric: (sum of weight * value, sum of weight)} over the examples of a batch."""


class Fixed(NamedTuple):
    """Weights that the step reads and never changes."""

    base: Params | None = None
    """The weights under adapters; none: all parameters are trained."""
    reference: Params | None = None
    """A live reference that does not move; none: it is cached, in the state, or not there."""


class StepMetrics(NamedTuple):
    """What an update reports."""

    loss: Array  # []
    grad_norm: Array  # []
    sums: Sums
    examples: Metrics  # [n, S, b] each; read only when something went wrong


def train_step(
    task: Task,
    tx: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
    fixed: Fixed,
    reference: settings.Reference | None = None,
) -> tuple[TrainState, StepMetrics]:
    """One update.

    Args:
      task: the objective and the policy's forward pass; a base, if any, is its first argument.
      tx: the optimizer.
      state: the state before.
      batch: leading axes [n, S].
      fixed: weights that do not change.
      reference: when and how far the state's reference moves, if it has one.

    Returns:
      The next state, and what to report.
    """
    gradient = value_and_grad(
        task.with_base(fixed.base),
        state.params,
        batch,
        state=state.objective_state,
        ref_params=fixed.reference if state.ref_params is None else state.ref_params,
        step=state.step,
    )
    with jax.named_scope("optimizer"):
        updates, opt_state = tx.update(gradient.grads, state.opt_state, state.params)
        params = cast(Params, optax.apply_updates(state.params, updates))
    ref_params = state.ref_params
    if ref_params is not None and reference is not None:
        ref_params = moved_reference(ref_params, params, state.step + 1, reference)
    sums = {k: weighted_sum(v, batch.weight) for k, v in gradient.metrics.items()}
    sums |= routing_sums(gradient.routing)
    norm = optax.tree.norm(gradient.grads)
    return (
        TrainState(params, opt_state, state.step + 1, gradient.state, ref_params),
        StepMetrics(gradient.loss, norm, sums, gradient.metrics),
    )


def moved_reference(
    ref_params: Params, params: Params, step: Array, reference: settings.Reference
) -> Params:
    """The weights of a moving reference after update number `step`, given the policy's then."""

    def mix(ref: Array, policy: Array) -> Array:
        ref32, policy32 = (x.astype(jnp.float32) for x in (ref, policy))
        return (reference.mix * policy32 + (1 - reference.mix) * ref32).astype(ref.dtype)

    due = step % reference.every == 0
    return jax.lax.cond(due, lambda r: jax.tree.map(mix, r, params), lambda r: r, ref_params)


def jitted_step(
    task: Task,
    tx: optax.GradientTransformation,
    abstract: TrainState,
    mesh: Mesh,
    reference: settings.Reference | None = None,
) -> jax.stages.Wrapped:
    """`train_step` compiled as a function of (state, batch, fixed); the state is donated.

    Args:
      task: the objective and the policy's forward pass.
      tx: the optimizer.
      abstract: shapes and shardings of the state.
      mesh: the device mesh.
      reference: when and how far the state's reference moves, if it has one.
    """
    shardings = jax.tree.map(lambda x: x.sharding, abstract)

    def update(state: TrainState, batch: Batch, fixed: Fixed) -> tuple[TrainState, StepMetrics]:
        return train_step(task, tx, state, batch, fixed, reference)

    return jax.jit(
        update,
        donate_argnums=0,
        out_shardings=(shardings, replicated(mesh)),
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
    policy, ref, _ = jax.lax.map(
        lambda cells: policy_and_reference(task, params, cells, ref_params), batch
    )
    inputs = LossInputs.of(task, batch, ref)  # every evaluation draws the same random numbers
    found = evaluate_loss(task, policy, inputs, objective_state)
    sums = {k: weighted_sum(v, batch.weight) for k, v in found.metrics.items()}
    terms = tuple(zip(found.totals, found.counts, strict=True))
    return EvalSums(terms, sums), EvalStatistics(policy, ref, found.metrics)
