"""jaxalign's jitted update, built from its public parts as its own training loop builds it."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxalign.run.stage import StageRun
from jaxalign.run.weights import first_state
from jaxalign.update.state import TrainState
from jaxalign.update.step import Step


def update_and_state(stage: StageRun, updates: int) -> tuple[Any, TrainState]:
    """The compiled update of a stage with that many updates, and its first state.

    The update takes (state, which is donated; [batch on the mesh], `Fixed` weights).
    """
    settings = dataclasses.replace(stage.settings, steps=updates)
    stages = stage.recipe.stages | {stage.name: settings}
    stage = dataclasses.replace(stage, recipe=dataclasses.replace(stage.recipe, stages=stages))
    return Step([stage.task], stage.rule, stage.state_spec, stage.mesh), first_state(stage)
