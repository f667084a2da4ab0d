"""The plan of a run: all checks of `train`, and what it would do and write, without doing it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console
from rich.text import Text

from ..data.examples import RowCounts
from ..settings import Recipe
from . import ledger
from .phases import Phases
from .plan import memory_words, settled
from .preflight import checked_stages, model_folder, pending
from .room import check_room, free, need, peak, size, words
from .stage import StageRun
from .term import TermRun
from .train import check_folder


def dry_run(
    recipe: Recipe, readable: Recipe, mesh: Mesh, console: Console, *, accept_changes: bool
) -> None:
    """Check a run as `train` does, and print its plan; the folder of the run is not changed.

    Args:
      recipe: the recipe.
      readable: the same recipe, in a folder whose synthetic data is there.
      mesh: the device mesh.
      console: where to print.
      accept_changes: whether inputs that have changed since a stage began are no error.

    Raises:
      UserError: see `train`.
      RunError: the disk has no room for the run.
    """
    check_folder(recipe)
    waiting, folder = pending(recipe), Path(recipe.run.dir)
    for name in recipe.stages:
        if name not in waiting:
            out = recipe.product(name)
            console.print(Text(f"{name}: finished before, its result is {out}"), soft_wrap=True)
    clocks = {name: Phases(folder / name, name, Console(quiet=True)) for name in waiting}
    needs, before = {}, None
    for opened in checked_stages(readable, mesh, console, clocks):
        stage = opened.with_recipe(recipe)
        if (stage.folder / ledger.FILE).exists() and not accept_changes:
            ledger.settle(stage, console, accept_changes=False)  # it is there, so none is written
        needs[stage.name] = need(opened)
        with jax.set_mesh(mesh):
            lines = {"start": before or _start(recipe, stage.name), **_lines(stage, console)}
        lines["disk"] = words(needs[stage.name])
        named = ", ".join(_objective(term) for term in stage.terms)
        console.print(Text(f"\n{stage.name}: {named}"), soft_wrap=True)
        width = max(10, *map(len, lines))
        for what, said in lines.items():
            console.print(Text(f"  {what:<{width}} {said}"), soft_wrap=True)
        before = f"the model of {stage.name}"
    for name in waiting:
        if name not in needs:
            why = "makes data" if name not in recipe.training else "reads data of a stage before it"
            console.print(Text(f"\n{name}: {why}; planned once that is there"), soft_wrap=True)
    room = f"needs {size(peak(needs.values()))}, and {size(free(folder))} is free"
    console.print(Text(f"\n{folder}: {room}; nothing was written"), soft_wrap=True)
    check_room(folder, needs)


def _start(recipe: Recipe, name: str) -> str:
    """The checkpoint that the first stage to be trained starts from."""
    before = recipe.before(name)
    return str(model_folder(recipe, before)) if before else recipe.model.path


def _lines(stage: StageRun, console: Console) -> dict[str, str]:
    """The plan of a stage, by what each line is about."""
    auto = stage.settings.microbatches == "auto"
    if auto:
        stage = settled(stage, console, keep=False)
    found: dict[str, str] = {}
    for term in stage.terms:
        found |= _named(term, _data(term))
    begun = _saved(stage)
    done = f", {begun} of them done" if begun else ""
    sizes = " + ".join(f"{term.settings.batch_size:,}" for term in stage.terms)
    found["updates"] = (
        f"{stage.updates:,}{done}, of {sizes} examples in "
        f"{stage.settings.microbatches} microbatches"
    )
    if (own := stage.settings.eval_samples) is not None:
        found["samples"] = (
            f"{own.count} answers of at most {own.max_new} tokens at each evaluation, of "
            f"{own.prompts or 'the held-out data'}"
        )
    if (best := stage.settings.keep_best) is not None:
        stops = f"; stops after {best.patience} evaluations without a better one"
        found["exports"] = (
            f"the update with the {best.want} held-out {best.metric}"
            f"{stops if best.patience else ''}"
        )
    found["trains"] = _trained(stage)
    for term in stage.terms:
        if term.reference_mode is not None:
            of = f"{term.reference_mode}, {term.settings.reference.path or 'the start'}"
            found |= _named(term, {"reference": of})
    if not auto:
        found["memory"] = memory_words(stage)
    written = ["inputs.json, metrics.jsonl, checkpoints/, model/"]
    written += [] if stage.adapted is None else ["adapter/"]
    cached = any(term.reference_mode == "cached" for term in stage.terms)
    written += ["reference/"] if cached else []
    found["writes"] = f"{stage.folder}: {', '.join(written)}"
    return found


def _objective(term: TermRun) -> str:
    """The name of an objective; of a term also its weight and its own name."""
    name = term.task.objective.name
    return f"{term.task.weight:g} {name} ({term.term})" if term.term else name


def _named(term: TermRun, lines: dict[str, str]) -> dict[str, str]:
    """Lines about a term, with its name."""
    return {f"{k} of {term.term}" if term.term else k: said for k, said in lines.items()}


def _data(term: TermRun) -> dict[str, str]:
    """The data of a term."""
    paths = ", ".join(source.path for source in term.settings.data.sources)
    streamed = "" if term.stream is None else ", streamed; its first rows"
    found = {"data": f"{paths}{streamed}: {_rows(term.train.counts)}"}
    if term.held_out is not None:
        found["held out"] = f"{term.settings.data.eval_path}: {_rows(term.held_out.counts)}"
    return found


def _rows(counts: RowCounts) -> str:
    dropped = sum(counts.dropped.values())
    return f"{counts.kept:,} examples" + (f", {dropped:,} rows dropped" if dropped else "")


def _trained(stage: StageRun) -> str:
    whole = _count(stage.model.abstract)
    if stage.adapted is None:
        return f"all {whole:,} parameters"
    return f"adapters of {_count(stage.adapted.abstract):,} parameters, over {whole:,} frozen ones"


def _count(params: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _saved(stage: StageRun) -> int:
    """Updates of the newest checkpoint; 0 if there is none."""
    steps = (stage.folder / "checkpoints").glob("step-*.json")
    return max((int(path.stem.removeprefix("step-")) for path in steps), default=0)
