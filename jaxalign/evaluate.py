"""Held-out metrics: sums and counts over a whole data set, divided once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from .batch import Batch
from .errors import UserError
from .forward import Task
from .sharding import put_batch, replicated
from .step import eval_step

Evaluate = Callable[..., dict[str, float]]
"""(params, objective state, batches, moved=None) -> metrics by name, with `loss`."""


def evaluator(task: Task, mesh: Mesh, ref_params: Any = None, frozen: Any = None) -> Evaluate:
    """Compile the evaluation of a task.

    Args:
      task: its forward pass takes `frozen` first, if there are such parameters.
      mesh: of the devices.
      ref_params: a live reference.
      frozen: parameters that the trained ones stand beside.

    Returns:
      A function of (params, objective state, batches), and the weights of a reference that moves.
      The loss is each term's total over its count, both over all examples; a short last batch
      weighs what it holds. The objective's running state is read and never written.
    """

    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def step(params: Any, objective_state: Any, batch: Batch, ref_params: Any, frozen: Any) -> Any:
        return eval_step(task.beside(frozen), params, objective_state, batch, ref_params)

    def run(
        params: Any, objective_state: Any, batches: Iterable[Batch], moved: Any = None
    ) -> dict[str, float]:
        total: Any = None
        reference = ref_params if moved is None else moved
        for batch in batches:
            out = step(params, objective_state, put_batch(batch, mesh), reference, frozen)
            out = jax.tree.map(lambda x: np.asarray(x, np.float64), out)
            total = out if total is None else jax.tree.map(np.add, total, out)
        if total is None:
            raise UserError("evaluation: the held-out data is empty")
        loss = sum(t / max(c, 1e-30) for t, c in total["terms"])
        return {"loss": float(loss)} | means(total["sums"])

    return run


def means(sums: dict[str, Any]) -> dict[str, float]:
    """{name: (sum, weight)} -> {name: mean}, leaving out what no example has."""
    return {k: float(s) / float(w) for k, (s, w) in sorted(sums.items()) if w > 0}
