"""jaxalign's jitted update, put together from its public parts as its own training loop does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

from jaxalign.optim import optimizer
from jaxalign.sharding import replicated
from jaxalign.stage import Prepared, first_params
from jaxalign.state import abstract_state, initial_state
from jaxalign.step import TrainState, train_step

Update = Callable[[TrainState, Any, Any], tuple[TrainState, dict[str, Any]]]
"""(state, batch on the mesh, reference parameters or None) -> (next state, metrics)."""


def update_and_state(prepared: Prepared, updates: int) -> tuple[Update, TrainState]:
    """The update of a stage of so many, which compiles at its first call, and the first state."""
    objective = prepared.task.objective
    tx = optimizer(prepared.stage.optimizer, updates)
    abstract = abstract_state(prepared.model, tx, objective)
    state = initial_state(first_params(prepared), objective, tx, abstract)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    update = jax.jit(
        functools.partial(train_step, prepared.task, tx),
        donate_argnums=0,
        out_shardings=(shardings, replicated(prepared.mesh)),
    )
    return update, state
