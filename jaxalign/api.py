"""The functions of the package: train, evaluate, generate, open, and the rest of the commands.

Each starts jax as its recipe asks. The command line adds arguments, printing and exit codes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh
from rich.console import Console

from . import settings
from .collect.chat import Chatting, converse, replier
from .collect.density import Density, write_ratios
from .collect.sample import Answers, Prompt, Sampling
from .collect.sample import sample as answer_each
from .data.ask import PromptRow
from .files import first_process
from .hf.load import resolve
from .language_model import LanguageModel
from .making import compare as compare
from .making import inspect as inspect
from .making import inspect_row as inspect_row
from .making import pair as pair
from .making import sample as sample
from .making import score as score
from .quickstart.show import answers_scored, show
from .quickstart.start import make_world, with_world
from .recipe.overrides import AnyRecipe, Overrides, given_recipe, stage_name
from .report import write_report
from .run import hosts, open_stage
from .run.devices import devices
from .run.dry_run import dry_run as plan_run
from .run.folder import Run, compile_cache_folder
from .run.lock import locked
from .run.train import train as train_stages
from .sweeps.grid import members
from .sweeps.page import write_page
from .sweeps.run import sweep as run_sweep
from .sweeps.table import Sweep


@overload
def train(recipe: AnyRecipe, overrides: Overrides = ..., *, accept_changes: bool = ...) -> Run: ...
@overload
def train(
    recipe: AnyRecipe, overrides: Overrides = ..., *, accept_changes: bool = ..., dry_run: bool
) -> Run | None: ...
def train(
    recipe: AnyRecipe,
    overrides: Overrides = None,
    *,
    accept_changes: bool = False,
    dry_run: bool = False,
) -> Run | None:
    """Check all stages of a recipe and train them; resume where an earlier process stopped.

    Args:
      recipe: the recipe.
      overrides: values to use instead of those in the recipe.
      accept_changes: continue although data, weights or another input of a stage has changed since
        it began; the stage's `inputs.json` keeps the changes.
      dry_run: check, print the plan of the run, change nothing in its folder and return None.

    Raises:
      UserError: the recipe, its data or checkpoints do not fit or have changed, or the folder holds
        another run.
      RunError: a loss is not finite, or a checkpoint could not be saved.
      Stopped: Ctrl-C or SIGTERM; the state is saved and the same call resumes from it.
    """
    chosen = given_recipe(recipe, overrides)
    if dry_run:
        with (
            _devices(chosen.mesh, chosen.model.dtype, chosen.run) as (mesh, console),
            with_world(chosen, mesh) as readable,
        ):
            plan_run(chosen, readable, mesh, console, accept_changes=accept_changes)
        return None
    with _writing("train", chosen) as (mesh, console):
        make_world(chosen, mesh)
        train_stages(chosen, mesh, console, accept_changes=accept_changes)
        if answers_scored(chosen):
            show(chosen, mesh, console)
        elif first_process():
            console.print(f"report: {write_report(Path(chosen.run.dir))}")
    return Run(chosen.run.dir)


def evaluate(
    recipe: AnyRecipe,
    stage: str | None = None,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    against: str | os.PathLike[str] | None = None,
    diagnostics: Sequence[str] | None = None,
    overrides: Overrides = None,
    accept_changes: bool = False,
) -> dict[str, float]:
    """Evaluate the model of a stage, or another checkpoint, on the held-out data of the stage.

    Args:
      recipe: the recipe.
      stage: the name of the stage; none: the last.
      checkpoint: Hugging Face folder or hub repository; none: the exported model of the stage.
      against: Hugging Face folder or hub repository of the reference; none: the reference of the
        stage, if it has one.
      diagnostics: additional measurements, by name; none: the list of the stage.
      overrides: values to use instead of those in the recipe.
      accept_changes: as for `train`.

    Returns:
      Held-out metrics by name, as `Run.metrics` has them under `eval/`.

    Raises:
      UserError: a name, a checkpoint or the data does not fit, or the stage is not trained yet.
    """
    chosen = given_recipe(recipe, overrides)
    name = stage_name(chosen, stage)
    with _writing("evaluate", chosen) as (mesh, console):
        return open_stage.evaluate_stage(
            chosen,
            name,
            mesh,
            console,
            checkpoint=None if checkpoint is None else str(checkpoint),
            against=None if against is None else str(against),
            diagnostics=diagnostics,
            accept_changes=accept_changes,
        )


def reference(
    recipe: AnyRecipe,
    stage: str | None = None,
    *,
    overrides: Overrides = None,
    accept_changes: bool = False,
) -> Path:
    """Compute the reference log-probabilities of a stage, which training then reads from disk.

    Args:
      recipe: the recipe.
      stage: the name of the stage; none: the last.
      overrides: values to use instead of those in the recipe.
      accept_changes: as for `train`.

    Returns:
      The folder they are in.

    Raises:
      UserError: the objective of the stage reads no cached reference.
    """
    chosen = given_recipe(recipe, overrides)
    name = stage_name(chosen, stage)
    with _writing("reference", chosen) as (mesh, console):
        return open_stage.compute_reference(
            chosen, name, mesh, console, accept_changes=accept_changes
        )


def export(
    recipe: AnyRecipe,
    out: str | os.PathLike[str],
    stage: str | None = None,
    *,
    adapter: bool = False,
    overrides: Overrides = None,
    accept_changes: bool = False,
) -> int:
    """Write the newest checkpoint of an unfinished stage as a Hugging Face folder.

    Args:
      recipe: the recipe.
      out: the folder to write; it must not exist.
      stage: the name of the stage; none: the last.
      adapter: write the adapters only, for PEFT.
      overrides: values to use instead of those in the recipe.
      accept_changes: as for `train`.

    Returns:
      The number of updates that the checkpoint has seen.

    Raises:
      UserError: the folder exists, or the stage has no checkpoint or no adapters.
    """
    chosen = given_recipe(recipe, overrides)
    name = stage_name(chosen, stage)
    with _writing("export", chosen) as (mesh, console):
        return open_stage.export_stage(
            chosen,
            name,
            mesh,
            console,
            Path(out),
            adapter=adapter,
            accept_changes=accept_changes,
        )


def open(
    folder: str | os.PathLike[str],
    dtype: Literal["float32", "bfloat16"] = "bfloat16",
    mesh: settings.Mesh | None = None,
) -> LanguageModel:
    """Read a model onto the devices.

    Args:
      folder: Hugging Face folder or hub repository, of a model or of an adapter.
      dtype: dtype of parameters and matrix products.
      mesh: sizes of the axes of the device mesh; none: all devices hold all parameters.

    Raises:
      UserError: there is no such model, or it is of an unknown architecture.
    """
    path = resolve(str(folder), "model")
    with _devices(mesh or settings.Mesh(), dtype) as (found, _):
        return LanguageModel(path, found, dtype)


def generate(
    model: str | os.PathLike[str] | LanguageModel, prompts: Sequence[Prompt], **how: Any
) -> list[str]:
    """Sample one answer to each prompt.

    Args:
      model: Hugging Face folder or hub repository, or a model that `open` has read.
      prompts: texts, or lists of messages for the chat template.
      how: arguments of `LanguageModel.generate`.

    Raises:
      UserError: the model, a prompt or an argument does not fit.
    """
    opened = model if isinstance(model, LanguageModel) else open(model)
    return opened.generate(prompts, **how)


def sample_answers(how: Sampling, rows: Sequence[PromptRow]) -> Answers:
    """Sample one answer to each prompt, as text and as tokens.

    Args:
      how: the model, the devices and how to draw.
      rows: the prompts.

    Raises:
      UserError: the model, a prompt or a setting does not fit.
    """
    folder = resolve(how.model, "model")
    with _devices(how.mesh, how.dtype) as (mesh, console):
        console.stderr = True
        return answer_each(folder, how, mesh, rows, console)


def chat(how: Chatting, lines: Iterable[str], say: Callable[[str], None], *, patient: bool) -> None:
    """Chat with a model, line by line.

    Args:
      how: the model, the devices and how to draw.
      lines: the messages of the user and the commands, as they are typed.
      say: what prints each piece of an answer; a line break is the last.
      patient: whether a mistake in a line is said and the chat goes on; otherwise it is an error.

    Raises:
      UserError: the model or a setting does not fit, or a line does not and `patient` is off.
    """
    folder = resolve(how.model, "model")
    with _devices(how.mesh, how.dtype) as (mesh, console):
        console.stderr = True
        converse(replier(folder, how, mesh), lines, say, console, how.system, patient=patient)


def density(how: Density) -> int:
    """Add to labeled data the density ratio of every prompt, which `bco_udm` reads.

    Args:
      how: the data, the model that embeds its prompts, and the file to write.

    Returns:
      The number of rows written.

    Raises:
      UserError: the model and the data do not fit, or all labels are the same.
    """
    folder = resolve(how.model, "model")
    with _devices(how.mesh, how.dtype) as (mesh, _):
        return write_ratios(folder, how, mesh)


def sweep(
    recipe: AnyRecipe,
    vary: Mapping[str, Sequence[Any]],
    overrides: Overrides = None,
    *,
    accept_changes: bool = False,
) -> Sweep:
    """Train runs of a recipe that differ in a few settings; compare their held-out metrics.

    There is a run for each combination of values, an ordinary one in a folder of its own in the
    recipe's `run.dir`. Equal stages, cached statistics and compiled programs are made once. The
    table is in `sweep.csv` and `sweep.html` in the `run.dir`. The same call resumes a sweep that
    was stopped; with more values it adds runs.

    Args:
      recipe: the recipe.
      vary: {"stages.dpo.objective.beta": [0.1, 0.3], "run.seed": range(5)}: the values of settings,
        by dotted path; a stage in rounds is "stages.round.stages.dpo". No other setting of `run` or
        `mesh` than the seed may vary, nor may `model.dtype`.
      overrides: values to use instead of those in the recipe.
      accept_changes: as for `train`.

    Returns:
      The held-out metrics of each run, and their means over seeds.

    Raises:
      UserError: a recipe, its data or checkpoints do not fit, or a folder holds another run.
      Stopped: Ctrl-C or SIGTERM; the state is saved and the same call resumes from it.
    """
    chosen = given_recipe(recipe, overrides)
    runs = members(chosen, {path: list(values) for path, values in vary.items()})
    with _writing("sweep", chosen) as (mesh, console):
        found = run_sweep(chosen, runs, mesh, console, accept_changes=accept_changes)
        if first_process():
            console.print(found.terminal())
            console.print(f"table: {write_page(found)}")
    return found


@contextlib.contextmanager
def _writing(command: str, recipe: settings.Recipe) -> Iterator[tuple[Mesh, Console]]:
    """Set up jax for a recipe, and hold the lock of its folder for a command that writes there."""
    with (
        _devices(recipe.mesh, recipe.model.dtype, recipe.run) as (mesh, console),
        locked(Path(recipe.run.dir), command, console),
    ):
        yield mesh, console


@contextlib.contextmanager
def _devices(
    sizes: settings.Mesh, dtype: str, run: settings.Run | None = None
) -> Iterator[tuple[Mesh, Console]]:
    """Set up jax; gives the device mesh and the console, quiet on all hosts but the first.

    Args:
      sizes: sizes of the axes of the mesh.
      dtype: dtype of matrix products.
      run: its cache of compiled programs and its hosts; none: jax stays as it is set.
    """
    if run is not None:
        _keep_programs(compile_cache_folder(run))
        if run.distributed:
            hosts.join(run.heartbeat)
    with devices(sizes, dtype) as found:
        yield found


def _keep_programs(folder: str | None) -> None:
    """Keep compiled programs in a folder; None: nowhere."""
    config: Any = jax.config  # whose settings type checkers do not see
    if config.jax_compilation_cache_dir != folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        # A process that has compiled something keeps the folder it had then, until this.
        compilation_cache.reset_cache()
