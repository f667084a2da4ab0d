"""The runs of a sweep, one after another in one process, so that they share what is compiled."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh
from rich.console import Console
from rich.text import Text

from ..errors import RunError
from ..files import first_process
from ..quickstart.show import answers_scored, compared
from ..quickstart.start import make_world
from ..report.read import read_run
from ..report.samples import FILE, write_samples
from ..run.lock import locked
from ..run.phases import Phases
from ..run.preflight import check_stages, pending
from ..run.read_data import begin
from ..run.train import check_folder, claim, train
from ..settings import Recipe
from .grid import SEED, Member
from .share import take, take_caches
from .table import Outcome, Sweep, write_csv


def sweep(
    recipe: Recipe,
    runs: Sequence[Member],
    mesh: Mesh,
    console: Console,
    *,
    accept_changes: bool = False,
) -> Sweep:
    """Train every run of a sweep that is not finished; a run that fails does not end the others.

    On several hosts it does, since a host cannot know whether the others have failed too.

    Before the first update of the first run, each combination of values except seeds is checked.

    Args:
      recipe: the recipe without the values that vary; its `run.dir` is the folder of the sweep.
      runs: the runs, of `grid.members`.
      mesh: the device mesh.
      console: where to print.
      accept_changes: resume with inputs that have changed since a stage began.

    Raises:
      UserError: a recipe, its data or a folder does not fit; nothing more is trained.
      RunError: a run failed on several hosts.
      Stopped: SIGTERM or SIGINT came; the same call resumes.
    """
    folder = Path(recipe.run.dir)
    if first_process():
        begin(folder)
    _check(runs, mesh, console)
    outcomes: list[Outcome] = []
    for i, member in enumerate(runs):
        before = [other.recipe for other in runs[:i]]
        console.print(Text(f"\nrun {i + 1} of {len(runs)}: {member.name}"))
        began = time.monotonic()
        problem = ""
        try:
            _train(member.recipe, before, mesh, console, accept_changes=accept_changes)
        except RunError as e:
            if jax.process_count() > 1:
                raise
            problem = str(e)
        outcomes.append(_outcome(member, problem, time.monotonic() - began))
        console.print(Text(outcomes[-1].line()))
        if first_process():
            write_csv(folder / "sweep.csv", outcomes)
    return Sweep(folder, tuple(outcomes))


def _check(runs: Sequence[Member], mesh: Mesh, console: Console) -> None:
    """Check the folder of every run, and the stages of each combination of values but seeds."""
    for member in runs:
        check_folder(member.recipe)
    checked: dict[str, Recipe] = {}
    for member in runs:
        seedless = repr({path: value for path, value in member.values.items() if path != SEED})
        if seedless in checked:
            continue
        recipe, quiet = member.recipe, Console(quiet=True)
        with locked(Path(recipe.run.dir), "sweep", console):
            _begin(recipe, list(checked.values()), mesh)
            clocks = {
                name: Phases(Path(recipe.product(name)).parent, name, quiet)
                for name in pending(recipe)
            }
            check_stages(recipe, mesh, quiet, clocks)
        checked[seedless] = recipe


def _begin(recipe: Recipe, before: Sequence[Recipe], mesh: Mesh) -> list[str]:
    """Claim the folder of a run, and take over what other runs have made."""
    folder = Path(recipe.run.dir)
    if first_process() and not (folder / "began.txt").exists():
        folder.mkdir(parents=True, exist_ok=True)
        # The clock of chat templates is the same for all runs.
        shutil.copyfile(folder.parent / "began.txt", folder / "began.txt")
    claim(recipe)
    taken = take(recipe, before)
    make_world(recipe, mesh)
    return taken


def _train(
    recipe: Recipe,
    before: Sequence[Recipe],
    mesh: Mesh,
    console: Console,
    *,
    accept_changes: bool,
) -> None:
    """Train a run to its end, and compare its models if they answer in a small world."""
    folder = Path(recipe.run.dir)
    with locked(folder, "train", console):
        for name in _begin(recipe, before, mesh):
            console.print(Text(f"{name}: the same as in an earlier run"))
        take_caches(recipe, before)
        if pending(recipe):
            train(recipe, mesh, console, accept_changes=accept_changes)
        if answers_scored(recipe) and not (folder / FILE).exists():
            comparison = compared(recipe, mesh, console)
            if first_process():
                write_samples(folder, comparison)


def _outcome(member: Member, problem: str, seconds: float) -> Outcome:
    """The result of a run, from its folder."""
    found = read_run(Path(member.recipe.run.dir))
    metrics: dict[str, float] = {}
    if found.comparison is not None and (summary := found.comparison.summary()) is not None:
        metrics["true reward"] = summary.after.mean
        metrics["win rate"] = summary.win_rate.mean
    if found.stages:
        metrics |= {name: estimate.mean for name, estimate in found.stages[-1].held_out.items()}
    return Outcome(member.name, dict(member.values), problem, metrics, seconds)
