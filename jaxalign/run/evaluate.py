"""Held-out metrics and diagnostics: sums and counts over a whole data set, divided once."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ..core.batch import Batch
from ..core.layouts import PAIRS
from ..core.objective import Objective, objective
from ..core.sharding import put_batch, replicated
from ..core.types import Array, Loss, Metrics, Pairs, per_example, select_rows
from ..diagnostics import DIAGNOSTICS, Diagnostic
from ..errors import UserError
from ..update.forward import Numbers, Params, Task
from ..update.gradient import value_and_grad
from ..update.loss import weighted_sum
from ..update.step import EvalStatistics, Fixed, Sums, eval_step


class Totals(NamedTuple):
    """Sums over the examples of a batch, or of a data set."""

    terms: tuple[tuple[Array, Array], ...]  # (total, count) of each term of the loss
    metrics: Sums
    squares: Sums  # {metric: (sum of weight * value^2, sum of weight^2)}
    diagnostics: list[Sums]


class HeldOut(dict[str, float]):
    """Held-out metrics by name.

    Attributes:
      standard_errors: the standard error of each metric that is a mean over examples, by name.
    """

    def __init__(self, metrics: dict[str, float], standard_errors: dict[str, float]):
        super().__init__(metrics)
        self.standard_errors = standard_errors


Evaluate = Callable[..., HeldOut]
"""(params, objective state, batches, moved=None) -> metrics by name, with `loss`."""


def evaluator(
    task: Task,
    mesh: Mesh,
    fixed: Fixed | None = None,
    diagnostics: Sequence[str] = (),
) -> Evaluate:
    """Compile the evaluation of a task.

    Args:
      task: the objective and the policy's forward pass; a base, if any, is its first argument.
      mesh: the device mesh.
      fixed: the weights under adapters, and a live reference; none: neither.
      diagnostics: names of further measurements; gradients are measured on the first batch alone.

    Returns:
      A function of (params, objective state, batches), and the weights of a reference that moves.
      The loss is each term's total over its count, both over all examples; a short last batch
      weighs what it holds. The objective's running state is read and never written.
    """
    fixed = fixed or Fixed()
    chosen = [DIAGNOSTICS[name] for name in diagnostics]
    of_examples = tuple(d for d in chosen if "gradients" not in d.inputs)
    of_gradients = tuple(d for d in chosen if "gradients" in d.inputs)
    static, numbers = task.split()
    step = _step_program(static, of_examples, mesh)
    probe = _probe_program(static, of_gradients, mesh)

    def run(
        params: Params, objective_state: Any, batches: Iterable[Batch], moved: Params | None = None
    ) -> HeldOut:
        total: Totals | None = None
        weights = fixed if moved is None else fixed._replace(reference=moved)
        probed: list[dict[str, Any]] = []
        for host_batch in batches:
            batch = put_batch(host_batch, mesh)
            if total is None and of_gradients:
                probed = jax.device_get(probe(params, batch, fixed.base))
            out = step(numbers, params, objective_state, batch, weights)
            out = jax.tree.map(lambda x: np.asarray(x, np.float64), out)
            total = out if total is None else jax.tree.map(np.add, total, out)
        if total is None:
            raise UserError("evaluation: the held-out data is empty")
        metrics = _finished(total, of_examples)
        for values in probed:
            metrics |= {k: float(v) for k, v in sorted(values.items()) if not np.isnan(v)}
        return HeldOut(metrics, _standard_errors(total))

    return run


@functools.lru_cache(maxsize=16)
def _step_program(
    task: Task, diagnostics: tuple[Diagnostic, ...], mesh: Mesh
) -> Callable[..., Totals]:
    """(numbers, params, objective state, batch, fixed) -> the sums of a batch, compiled."""
    seen = _with_needs(task, diagnostics)

    def step(
        numbers: Numbers, params: Params, objective_state: Any, batch: Batch, fixed: Fixed
    ) -> Totals:
        policy = seen.with_numbers(numbers).with_base(fixed.base)
        sums, statistics = eval_step(policy, params, objective_state, batch, fixed.reference)
        squares = _squares(statistics.metrics, batch.weight)
        return Totals(*sums, squares, _diagnose(policy, diagnostics, batch, statistics))

    return jax.jit(step, out_shardings=replicated(mesh))


@functools.lru_cache(maxsize=16)
def _probe_program(
    task: Task, diagnostics: tuple[Diagnostic, ...], mesh: Mesh
) -> Callable[..., list[Metrics]]:
    """(params, batch, base) -> the diagnostics of gradients, compiled; no number is read."""

    def probe(params: Params, batch: Batch, base: Params | None) -> list[Metrics]:
        gradients = _gradients(task.with_base(base), params, batch)
        return [d(gradients=gradients) for d in diagnostics]

    return jax.jit(probe, out_shardings=replicated(mesh))


def _squares(metrics: Metrics, weight: Array) -> Sums:
    """The second moments of metrics [n, S, b] and of their weights, for standard errors."""

    def moments(values: Array) -> tuple[Array, Array]:
        own = jnp.where(jnp.isnan(values), 0.0, weight)
        return weighted_sum(values**2, weight)[0], jnp.sum(own**2)

    return {k: moments(v) for k, v in metrics.items()}


def _standard_errors(total: Totals) -> dict[str, float]:
    """The standard error of each mean: the standard deviation over the root of n - 1.

    With weights that differ, n is (sum of weights)^2 / (sum of squared weights).
    """
    errors = {}
    for name, (weighted, weight) in total.metrics.items():
        square, squared_weight = total.squares[name]
        count = float(weight**2 / squared_weight) if squared_weight > 0 else 0.0
        if count > 1:
            variance = max(float(square / weight - (weighted / weight) ** 2), 0.0)
            errors[name] = math.sqrt(variance / (count - 1))
    return {name: error for name, error in errors.items() if math.isfinite(error)}


def _finished(total: Totals, diagnostics: Sequence[Diagnostic]) -> dict[str, float]:
    """Sums over a data set -> the numbers that are reported."""
    loss = sum(t / max(c, 1e-30) for t, c in total.terms)
    metrics = {"loss": float(loss)} | means(total.metrics)
    for d, sums in zip(diagnostics, total.diagnostics, strict=True):
        metrics |= means(sums, d.finish)
    return metrics


def means(sums: dict[str, Any], finish: Callable[[Any], float] = float) -> dict[str, float]:
    """{name: (sum, weight)} -> {name: finished mean}, leaving out what no example has."""
    exact = {k: np.asarray(v, np.float64) for k, v in sorted(sums.items())}
    return {k: finish(s / w) for k, (s, w) in exact.items() if np.all(w > 0)}


def _with_needs(task: Task, diagnostics: Sequence[Diagnostic]) -> Task:
    """The same task that also computes the token statistics which diagnostics read."""
    needs = dict.fromkeys((*task.objective.needs, *(s for d in diagnostics for s in d.needs)))
    return dataclasses.replace(
        task, objective=dataclasses.replace(task.objective, needs=tuple(needs))
    )


def _diagnose(
    task: Task, diagnostics: Sequence[Diagnostic], batch: Batch, statistics: EvalStatistics
) -> list[Sums]:
    """{metric: (sum, weight)} of each diagnostic over a batch.

    Args:
      task: objective and hyper-parameters.
      diagnostics: the diagnostics to compute.
      batch: the batch.
      statistics: its statistics under the policy and the reference, and its metrics.
    """
    lead = batch.weight.ndim

    def merged(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[lead:]), tree)

    layout, hyper = task.objective.data, task.objective.hyper
    given = {k: p.default for k, p in hyper.items() if k == "beta"}
    given |= {k: v for k, v in task.hyper.items() if k == "beta"}
    given["policy"] = select_rows(layout, merged(statistics.policy))
    if statistics.ref is not None:
        given["ref"] = select_rows(layout, merged(statistics.ref))
    if "rewards/margins" in statistics.metrics:
        given["margins"] = statistics.metrics["rewards/margins"].reshape(-1)
    weight = batch.weight.reshape(-1)
    by_column = jax.vmap(weighted_sum, (-1, None))
    return [
        {k: (weighted_sum if v.ndim == 1 else by_column)(v, weight) for k, v in d(**given).items()}
        for d in diagnostics
    ]


def _mean_logp(row: str) -> Objective[...]:
    """The average of a response's log-probability over pairs, as if it were a loss."""

    def mean_logp(policy: Pairs) -> tuple[Loss, Metrics]:
        """Summed log-probability."""
        return per_example(getattr(policy, row).logp), {}

    return objective(Pairs, source="a probe")(mean_logp)


def _gradients(task: Task, params: Params, batch: Batch) -> dict[str, Params]:
    """{row: gradient of the batch's average log-probability of that response}."""

    def of(row: str) -> Params:
        probe = dataclasses.replace(task, objective=_mean_logp(row), hyper={})
        return value_and_grad(probe, params, batch).grads

    return {row: of(row) for row in PAIRS.responses}
