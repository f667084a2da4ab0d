"""jaxalign's jitted update, put together from its public parts as its own training loop does."""

from __future__ import annotations

from typing import Any

from jaxalign.run.stage import Prepared, first_params
from jaxalign.update.optimizer import optimizer
from jaxalign.update.state import abstract_state, initial_state
from jaxalign.update.step import TrainState, jitted_step


def update_and_state(prepared: Prepared, updates: int) -> tuple[Any, TrainState]:
    """The update of a stage of so many, which compiles at its first call, and the first state.

    The update takes (state, donated; batch on the mesh, reference parameters, frozen parameters).
    """
    objective = prepared.task.objective
    tx = optimizer(prepared.stage.optimizer, updates)
    abstract = abstract_state(prepared.model, tx, objective)
    state = initial_state(first_params(prepared), objective, tx, abstract)
    return jitted_step(prepared.task, tx, abstract, prepared.mesh), state
