"""One stage of a recipe, opened to evaluate it, to export it or to compute its reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh
from rich.console import Console

from ..diagnostics import problem
from ..errors import UserError
from ..hf.load import resolve
from ..hf.peft import load_merged
from ..recipe.schema import objective_settings, reference_mode
from ..settings import Recipe, Stage
from ..update.step import Fixed
from . import ledger
from .evaluate import evaluator
from .export import newest_state, write_checkpoint
from .plan import settled
from .preflight import model_folder
from .reference import cached_reference
from .stage import StageRun, prepare
from .train import claim
from .weights import live_reference


def open_stage(
    recipe: Recipe, name: str, mesh: Mesh, console: Console, *, accept_changes: bool
) -> StageRun:
    """Read the data of a stage and describe its model, on top of the stages before it.

    Args:
      recipe: the recipe.
      name: the name of the stage.
      mesh: the device mesh.
      console: where to print.
      accept_changes: open it although its inputs have changed since it began.

    Raises:
      UserError: the stage before it is not trained yet, or something in the stage does not fit or
        has changed.
    """
    claim(recipe)
    before = recipe.before(name)
    source = model_folder(recipe, before) if before else recipe.locate(recipe.model.path)
    if before and not Path(source).exists():
        raise UserError(f"stage {name}: it starts from {source}, which is not there; train first")
    stage = prepare(recipe, name, resolve(str(source)), mesh, console)
    stage.show_data(console)
    stage = settled(stage, console)
    ledger.settle(stage, console, accept_changes=accept_changes)
    return stage


def evaluate_stage(
    recipe: Recipe,
    name: str,
    mesh: Mesh,
    console: Console,
    *,
    checkpoint: str | None = None,
    against: str | None = None,
    diagnostics: Sequence[str] | None = None,
    accept_changes: bool = False,
) -> dict[str, float]:
    """Evaluate the model of a stage, or another checkpoint, on the held-out data of the stage.

    Args:
      recipe: the recipe.
      name: the name of the stage.
      mesh: the device mesh.
      console: where to print the progress.
      checkpoint: Hugging Face folder or hub repository; none: the exported model of the stage.
      against: Hugging Face folder or hub repository of the reference; none: the reference of the
        stage, if it has one.
      diagnostics: names of additional measurements; none: the list of the stage.
      accept_changes: evaluate although inputs of the stage have changed since it began.

    Returns:
      Metrics by name.

    Raises:
      UserError: a name, a checkpoint or the data does not fit, or the stage is not trained yet.
    """
    stage = recipe.stages[name]
    measured = stage.diagnostics if diagnostics is None else diagnostics
    _check_evaluation(name, stage, measured, against)
    # Before the data, which may take long to read.
    trained = model_folder(recipe, name)
    if checkpoint is None and not trained.exists():
        raise UserError(f"stage {name}: {trained} is not there; train first, or name a checkpoint")
    folder = resolve(checkpoint or str(trained), "checkpoint")
    other = None if against is None else resolve(against, "against")
    ready = open_stage(recipe, name, mesh, console, accept_changes=accept_changes)
    assert ready.held_out is not None  # `_check_evaluation` refused a stage without
    with jax.set_mesh(mesh):
        if other is None:
            cached = cached_reference(ready, "held_out", console)
            reference = None if ready.moving else live_reference(ready)
        else:
            cached, reference = None, load_merged(other, ready.model)
        batches = ready.loader(ready.held_out, cached).sequential()
        params = load_merged(folder, ready.model)
        objective_state = moved = None
        if ready.task.objective.init_state is not None or ready.moving:
            # The state of the objective and a moving reference are not in a Hugging Face folder.
            state = newest_state(ready)[1]
            objective_state, moved = state.objective_state, state.ref_params
        run = evaluator(ready.task, mesh, Fixed(None, reference), measured)
        return run(params, objective_state, batches, None if other else moved)


def _check_evaluation(
    name: str, stage: Stage, measured: Sequence[str], against: str | None
) -> None:
    """Refuse an evaluation that the objective or the data of a stage does not allow."""
    objective, _ = objective_settings(stage)
    mode = reference_mode(stage) if against is None else "live"
    if wrong := problem(measured, objective, ref=mode):
        raise UserError(f"diagnostics: {wrong}")
    if against is not None and objective.scores is not None:
        raise UserError(f"against: '{objective.name}' trains a reward head and has no reference")
    if stage.data.eval_path is None:
        raise UserError(f"stages.{name}.data.eval_path: give data to evaluate on")


def compute_reference(
    recipe: Recipe, name: str, mesh: Mesh, console: Console, *, accept_changes: bool = False
) -> Path:
    """Compute the statistics of a stage's frozen models, on disk; returns their folder.

    Arguments as for `open_stage`.

    Raises:
      UserError: the objective of the stage reads no cached reference.
    """
    ready = open_stage(recipe, name, mesh, console, accept_changes=accept_changes)
    with jax.set_mesh(mesh):
        if cached_reference(ready, "train", console) is None:
            objective = ready.task.objective.name
            raise UserError(f"stage {name}: '{objective}' reads no cached reference")
        if ready.held_out is not None:
            cached_reference(ready, "held_out", console)
    return ready.folder / "reference"


def export_stage(
    recipe: Recipe,
    name: str,
    mesh: Mesh,
    console: Console,
    folder: Path,
    *,
    adapter: bool,
    accept_changes: bool = False,
) -> int:
    """Export the newest checkpoint of a stage to a folder; returns the updates it has seen.

    Arguments as for `open_stage`; `adapter`: export the adapters alone.

    Raises:
      UserError: the folder exists, or the stage has no checkpoint or no adapters.
    """
    ready = open_stage(recipe, name, mesh, console, accept_changes=accept_changes)
    with jax.set_mesh(mesh):
        return write_checkpoint(ready, folder, console, adapter=adapter)
