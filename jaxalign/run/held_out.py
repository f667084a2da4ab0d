"""The evaluations of a stage: between updates, and of the weights that it exports."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

from ..data.loader import Loader
from ..hf.rounding import exported, lossy
from ..models.decoder import Encoded, Params
from ..update.forward import Forward
from ..update.state import TrainState
from ..update.step import Fixed
from .evaluate import HeldOut, evaluator
from .stage import StageRun


class Evaluation(Protocol):
    """A training state -> its held-out metrics; none where the stage has no held-out data."""

    def __call__(self, state: TrainState, *, last: bool) -> HeldOut:
        """The metrics; of the weights that are exported, if the state is the `last`."""
        ...


def evaluation(stage: StageRun, fixed: Fixed, held_out: Loader | None) -> Evaluation:
    """The evaluation of a stage.

    The last one rounds the weights to the dtypes of the export, so that its metrics are true of
    the exported folder.

    Args:
      stage: the stage.
      fixed: the weights that training reads and never changes.
      held_out: batches of the held-out data; none: there are none.
    """
    dtype, adapted = stage.recipe.model.export_dtype, stage.adapted is not None
    kinds = lossy(stage.model, source=stage.source, dtype=dtype, merged=adapted)
    task = stage.policy
    exact = evaluator(task, stage.mesh, fixed, stage.settings.diagnostics)
    rounded = exact
    if kinds and adapted:
        task = dataclasses.replace(task, forward=_merged_forward(stage, kinds))
        rounded = evaluator(task, stage.mesh, fixed, stage.settings.diagnostics)

    def evaluate(state: TrainState, *, last: bool) -> HeldOut:
        if held_out is None:
            return HeldOut({}, {})
        params, run = state.params, rounded if last else exact
        if last and not adapted:
            params = exported(params, kinds)
        return run(params, state.objective_state, held_out.sequential(), state.ref_params)

    return evaluate


def _merged_forward(stage: StageRun, kinds: dict[tuple[str, ...], str]) -> Forward:
    """`Adapted.forward` with the adapters merged into the base and rounded, as in the export."""
    adapted = stage.adapted
    assert adapted is not None

    def forward(frozen: Params, adapters: Params, *rows: Any, **layers: Any) -> Encoded:
        if not adapters:  # the reference
            return adapted.forward(frozen, adapters, *rows, **layers)
        merged = exported(adapted.merged(frozen, adapters), kinds)
        return adapted.base.forward(merged, *rows, **layers)

    return forward
