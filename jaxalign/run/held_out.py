"""The evaluations of a stage: between updates, and of the weights that it exports."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ..data.loader import Loader
from ..files import write_whole
from ..hf.rounding import exported, lossy
from ..models.decoder import Encoded, Params
from ..update.forward import Forward
from ..update.state import TrainState
from ..update.step import Fixed
from .evaluate import Evaluate, HeldOut, evaluator
from .stage import StageRun
from .term import TermRun


class Evaluation(Protocol):
    """A training state -> its held-out metrics; none where the stage has no held-out data."""

    def __call__(self, state: TrainState, *, last: bool) -> HeldOut:
        """The metrics; of the weights that are exported, if the state is the `last`."""
        ...


def evaluation(stage: StageRun, fixed: Fixed, held_out: Sequence[Loader | None]) -> Evaluation:
    """The evaluation of a stage.

    The last one rounds the weights to the dtypes of the export, so that its metrics are true of
    the exported folder.

    Args:
      stage: the stage.
      fixed: the weights that training reads and never changes.
      held_out: batches of the held-out data of each term; none: there are none.
    """
    kinds, adapted = lossy_kinds(stage), stage.adapted is not None

    def evaluators(term: TermRun, own: Fixed) -> tuple[Evaluate, Evaluate]:
        """The evaluation of a term by the weights in training, and by the exported weights."""
        task, names = term.policy, term.settings.diagnostics
        exact = evaluator(task, stage.mesh, own, names)
        if not (kinds and adapted):
            return exact, exact
        task = dataclasses.replace(task, forward=_merged_forward(stage, kinds))
        return exact, evaluator(task, stage.mesh, own, names)

    runs = [evaluators(*each) for each in zip(stage.terms, fixed.of_terms(), strict=True)]

    def evaluate(state: TrainState, *, last: bool) -> HeldOut:
        params = state.params
        if last and not adapted:
            params = exported(params, kinds)
        found: dict[str, HeldOut] = {}
        for term, run, own, loader in zip(stage.terms, runs, state.terms, held_out, strict=True):
            if loader is not None:
                batches = loader.sequential()
                found[term.term] = run[last](params, own.objective_state, batches, own.ref_params)
        return joined(stage, found)

    return evaluate


def lossy_kinds(stage: StageRun) -> dict[tuple[str, ...], str]:
    """{path of a parameter: dtype of its exported tensor}, where the export rounds it."""
    dtype, adapted = stage.recipe.model.export_dtype, stage.adapted is not None
    return lossy(stage.model, source=stage.source, dtype=dtype, merged=adapted)


def joined(stage: StageRun, found: Mapping[str, HeldOut]) -> HeldOut:
    """The held-out metrics of the terms of a stage, under their names in it.

    `loss` is the weighted sum of the losses of all terms; it is left out if a term of several has
    no held-out data.

    Args:
      stage: the stage.
      found: the metrics of each term that has held-out data.
    """
    together: dict[str, float] = {}
    errors: dict[str, float] = {}
    tasks = [term.task for term in stage.terms]
    if stage.others and len(found) == len(tasks):
        together["loss"] = sum(task.weight * found[task.term]["loss"] for task in tasks)
    for task in tasks:
        if task.term in found:
            together |= task.named(found[task.term])
            errors |= task.named(found[task.term].standard_errors)
    return HeldOut(together, errors)


def record_errors(stage: StageRun, step: int, metrics: HeldOut, *, exported: bool = False) -> None:
    """Write held_out.json: the standard errors of the newest held-out metrics.

    Args:
      stage: the stage.
      step: the update.
      metrics: its held-out metrics; nothing is written if there are none.
      exported: whether they are of the exported weights of a stage that exports its best update.
        They are written too then, since metrics.jsonl has the evaluations of training alone.
    """
    if not metrics:
        return
    counts = {term.term: len(term.held_out) for term in stage.terms if term.held_out is not None}
    record: dict[str, Any] = {"step": step, "examples": counts if stage.others else counts.get("")}
    if exported:
        record["exported"] = dict(metrics)
    record["standard_errors"] = metrics.standard_errors
    write_whole(stage.folder / "held_out.json", json.dumps(record, indent=1))


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
