"""One stage of a recipe, opened to evaluate it, to export it or to compute its reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from ..update.state import TermState
from ..update.step import Fixed
from . import ledger
from .evaluate import HeldOut, evaluator
from .export import exported_state, write_checkpoint
from .held_out import joined
from .plan import settled
from .preflight import model_folder
from .reference import cached_reference, held_out_loader
from .stage import StageRun, prepare
from .train import claim
from .weights import fixed_references


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
    goals = recipe.stages[name].goals()
    if diagnostics is not None and "" not in goals:
        raise UserError(
            f"diagnostics: each term of stage {name} has its own; give them in the recipe"
        )
    if all(goal.data.eval_path is None for goal in goals.values()):
        where = f"stages.{name}" if "" in goals else f"stages.{name}.terms.{next(iter(goals))}"
        raise UserError(f"{where}.data.eval_path: give data to evaluate on")
    measured = {k: g.diagnostics if diagnostics is None else diagnostics for k, g in goals.items()}
    for term, goal in goals.items():
        _check_evaluation(goal, measured[term], against)
    # Before the data, which may take long to read.
    trained = model_folder(recipe, name)
    if checkpoint is None and not trained.exists():
        raise UserError(f"stage {name}: {trained} is not there; train first, or name a checkpoint")
    folder = resolve(checkpoint or str(trained), "checkpoint")
    other = None if against is None else resolve(against, "against")
    ready = open_stage(recipe, name, mesh, console, accept_changes=accept_changes)
    with jax.set_mesh(mesh):
        return _evaluated(ready, folder, other, measured, console)


def _evaluated(
    ready: StageRun,
    folder: Path,
    against: Path | None,
    measured: Mapping[str, Sequence[str]],
    console: Console,
) -> HeldOut:
    """The metrics of a checkpoint on the held-out data of a stage.

    Args:
      ready: the stage.
      folder: the checkpoint.
      against: the checkpoint of the reference; None: each term has its own.
      measured: the diagnostics of each term.
      console: where to print progress.
    """
    states = [TermState() for _ in ready.terms]
    if any(term.moving or term.task.objective.init_state is not None for term in ready.terms):
        # The state of the objective and a moving reference are not in a Hugging Face folder.
        states = exported_state(ready).terms
    references = fixed_references(ready) if against is None else []
    if against is not None:
        references = [load_merged(against, ready.model)] * len(states)
    params = load_merged(folder, ready.model)
    found: dict[str, HeldOut] = {}
    for term, state, reference in zip(ready.terms, states, references, strict=True):
        if term.held_out is not None:
            cached = cached_reference(term, "held_out", console) if against is None else None
            batches = term.loader(term.held_out, cached).sequential()
            run = evaluator(term.task, ready.mesh, Fixed(None, reference), measured[term.term])
            moved = state.ref_params if against is None else None
            found[term.term] = run(params, state.objective_state, batches, moved)
    return joined(ready, found)


def _check_evaluation(stage: Stage, measured: Sequence[str], against: str | None) -> None:
    """Refuse an evaluation that the objective or the data of a stage does not allow."""
    objective, _ = objective_settings(stage)
    mode = reference_mode(stage) if against is None else "live"
    if wrong := problem(measured, objective, ref=mode):
        raise UserError(f"diagnostics: {wrong}")
    if against is not None and objective.scores is not None:
        raise UserError(f"against: '{objective.name}' trains a reward head and has no reference")


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
        found = [cached_reference(term, "train", console) for term in ready.terms]
        if not any(found):
            objectives = ", ".join(f"'{term.task.objective.name}'" for term in ready.terms)
            raise UserError(f"stage {name}: {objectives} reads no cached reference")
        for term in ready.terms:
            held_out_loader(term, console)
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
