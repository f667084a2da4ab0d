"""Train the stages of a recipe, one after another, resuming where an earlier process stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from rich.console import Console

from ..core.batch import Batch
from ..core.sharding import put_batch
from ..data.loader import Loader
from ..data.pack import TokenCounts, token_counts
from ..errors import UserError
from ..files import first_process, write_whole
from ..hf import load
from ..hf.kept import Kept
from ..recipe.diff import differences
from ..recipe.read import dump, recorded, resolved
from ..settings import Recipe
from ..update.state import TrainState
from ..update.step import Fixed, Step
from . import export, ledger
from .best import Best
from .checkpoint import Checkpoints
from .data_stage import make_data
from .evaluate import HeldOut
from .held_out import Evaluation, evaluation, lossy_kinds, record_errors
from .phases import Phases
from .plan import settled
from .preflight import check_stages, model_folder, pending
from .read_data import begin
from .reference import cached_reference, held_out_loader
from .room import check_writable
from .samples import with_samples
from .sizes import keep_sizes
from .stage import StageRun, prepare
from .tracking import Tracker
from .update_metrics import reader
from .weights import first_state, fixed_weights

FREE_TO_CHANGE = ("run.dir", "run.log_every", "run.tensorboard", "run.wandb", "run.compile_cache",
                  "run.token_store", "run.distributed", "run.heartbeat", "mesh.")  # fmt: skip
CLAIM = {"lock", *(f"{name}{end}" for name in ("recipe.yaml", "environment.json", "began.txt")
                   for end in ("", ".tmp"))}  # fmt: skip
"""Files of a run's folder before its first stage has written anything."""


class Stopped(Exception):  # noqa: N818
    """The run was asked to stop by a signal and has saved its state."""

    def __init__(self, message: str, number: int):
        """`number` is the number of the signal."""
        super().__init__(message)
        self.number = number


def train(recipe: Recipe, mesh: Mesh, console: Console, *, accept_changes: bool = False) -> Path:
    """Run every stage that is not finished; returns the folder of the last exported model.

    Args:
      recipe: the recipe.
      mesh: the device mesh.
      console: where to print.
      accept_changes: resume with inputs that have changed since a stage began.

    Raises:
      UserError: the recipe, its data or checkpoints do not fit, or the folder is another run's.
      RunError: a loss is not finite, or a checkpoint could not be saved.
      Stopped: SIGTERM or SIGINT came; the state is saved and the same command resumes from it.
    """
    claim(recipe)
    clocks = {
        name: Phases(Path(recipe.product(name)).parent, name, console) for name in pending(recipe)
    }
    check_stages(recipe, mesh, console, clocks)
    source, kept = load.resolve(recipe.locate(recipe.model.path)), Kept()
    for name in recipe.stages:
        out = Path(recipe.product(name))
        if name not in clocks:
            console.print(f"{name}: finished before, {_result(recipe, name)}")
        elif name not in recipe.training:
            with clocks[name]("making data"):
                make_data(
                    recipe, name, source, mesh, console, accept_changes=accept_changes, kept=kept
                )
        else:
            phases = clocks[name]
            with jax.set_mesh(mesh):
                with phases("reading data"):
                    stage = prepare(recipe, name, source, mesh, console).with_kept(kept)
                stage.show_data(console)
                stage = settled(stage, console)
                ledger.settle(stage, console, accept_changes=accept_changes)
                train_stage(stage, console, phases)
        source = out if name in recipe.training else source
    return source


def _result(recipe: Recipe, name: str) -> str:
    kind = "model is in" if name in recipe.training else "data is"
    return f"its {kind} {recipe.product(name)}"


def claim(recipe: Recipe) -> None:
    """Take the folder of the run, or continue in it if this recipe made its contents.

    Raises:
      UserError: it cannot be written, or holds another run; names what differs.
    """
    check_folder(recipe)
    # Every host has looked before the first one writes.
    multihost_utils.sync_global_devices("claim")
    folder = Path(recipe.run.dir)
    write_whole(folder / "recipe.yaml", dump(recipe))
    begin(folder)
    write_whole(folder / "environment.json", json.dumps(export.environment(), indent=1))


def check_folder(recipe: Recipe) -> None:
    """Refuse a folder that `claim` could not take; nothing is written.

    Raises:
      UserError: it cannot be written, or holds another run; names what differs.
    """
    folder = Path(recipe.run.dir)
    check_writable(folder, "run.dir")
    path = folder / "recipe.yaml"
    held = {f.name for f in folder.iterdir()} if folder.exists() else set()
    if not held <= CLAIM and not path.exists():
        raise UserError(f"run.dir: {folder} is not empty and holds no run; choose another folder")
    if not held <= CLAIM:
        before = recorded(str(path))
        then, now = (_begun(stages, folder) for stages in (before["stages"], recipe.stages))
        # A stage that has written nothing yet may still be changed.
        pending = {*before["stages"], *recipe.stages} - {*then, *now}
        # One that only one recipe has is named with the lists of stages.
        skipped = pending | (set(then) ^ set(now))
        free = (*FREE_TO_CHANGE, *(f"stages.{name}." for name in skipped))
        changed = [f"stages: {then} -> {now}"] if then != now else []
        changed += [c for c in differences(before, resolved(recipe)) if not c.startswith(free)]
        if changed:
            raise UserError(
                f"run.dir: {folder} holds another run, which differs in\n  "
                + "\n  ".join(changed)
                + "\nchoose another --run.dir, or delete that folder"
            )


def _begun(stages: Iterable[str], folder: Path) -> list[str]:
    """The stages up to the last one that has left something in the folder."""
    names = list(stages)
    return names[: max((i for i, n in enumerate(names, 1) if (folder / n).exists()), default=0)]


def train_stage(stage: StageRun, console: Console, phases: Phases) -> None:
    """Train one stage to its end and export its model.

    The weights stay on the devices for the stages after it, if there are any.
    """
    with phases("reference pass"):
        loaders = [
            term.training_loader(cached_reference(term, "train", console)) for term in stage.terms
        ]
        held_out = [held_out_loader(term, console) for term in stage.terms]
    tasks = [term.task for term in stage.terms]
    keep_sizes(stage.recipe, stage.name, zip(tasks, loaders, held_out, strict=True))
    checkpoints = Checkpoints(stage.folder / "checkpoints", stage.settings.keep)
    with contextlib.closing(checkpoints):
        found = checkpoints.restore(stage.state_spec)
        fixed = fixed_weights(stage)
        start, state = found or (0, first_state(stage))
        stage.kept.drop()
        if found is not None:
            console.print(f"{stage.name}: resumes after update {start} of {stage.updates}")
        best = Best(stage, start)
        best.check(checkpoints)
        evaluate = with_samples(evaluation(stage, fixed, held_out), stage, fixed, phases)
        metrics = HeldOut({}, {})
        if start < stage.updates and not best.over:
            _record_data(stage)
            log = tracker(stage, start, console, phases)
            batches = _batches(stage, loaders, start)
            state, metrics = _updates(
                stage, start, state, fixed, batches, evaluate, checkpoints, best, log
            )
        elif not best.chooses:
            with phases("evaluating"):
                metrics = evaluate(state, last=True)
        note = ""
        if best.chooses:
            chosen = best.end()
            if chosen.update != int(state.step):
                del state, found  # there is room for one
                state = checkpoints.restore_step(chosen.update, stage.state_spec)
            note = str(chosen)
            console.print(f"{stage.name}: {note}")
            with phases("evaluating"):
                metrics = evaluate(state, last=True)
            record_errors(stage, chosen.update, metrics, exported=True)
        out = model_folder(stage.recipe, stage.name)
        with phases("exporting"):
            if stage.adapted is not None:
                adapter = out.with_name("adapter")
                export.write_adapter(stage, state.params, adapter, metrics, note=note)
            export.write_model(stage, state.params, fixed.base, out, metrics, console, note=note)
        if stage.adapted is None and stage.name != list(stage.recipe.stages)[-1]:
            stage.kept.keep(out, state.params, stage.model, lossy_kinds(stage))
    console.print(f"{stage.name}: model written to {out}")


def _record_data(stage: StageRun) -> None:
    """Write data.json: the updates of the stage and the row counts of its data sets."""
    record: dict[str, Any] = {"updates": stage.updates}
    for term in stage.terms:
        record |= {name: dataclasses.asdict(found.counts) for name, found in term.sets().items()}
    write_whole(stage.folder / "data.json", json.dumps(record, indent=1))


def _batches(
    stage: StageRun, loaders: Sequence[Loader], start: int
) -> Generator[tuple[Batch, ...]]:
    """The batches of all terms of the updates from `start` on, by their training loaders."""
    with contextlib.ExitStack() as closing:
        each = [
            closing.enter_context(contextlib.closing(term.batches(loader, start, stage.updates)))
            for term, loader in zip(stage.terms, loaders, strict=True)
        ]
        for batch in zip(*each, strict=True):
            by_term = dict(zip((term.term for term in stage.terms), batch, strict=True))
            for term in stage.terms:
                if term.task.batch_of is not None:
                    theirs = by_term[term.task.batch_of].ids
                    assert np.array_equal(by_term[term.term].ids, theirs), term.term
            yield batch


def _updates(
    stage: StageRun,
    start: int,
    state: TrainState,
    fixed: Fixed,
    batches: Generator[tuple[Batch, ...]],
    evaluate: Evaluation,
    checkpoints: Checkpoints,
    best: Best,
    log: Tracker,
) -> tuple[TrainState, HeldOut]:
    """Updates `start` + 1 to the stage's last, or until no better one has come for long.

    Returns:
      The last state, and its held-out metrics.
    """
    every, total = stage.settings, stage.updates
    update = Step(stage.policies, stage.rule, stage.state_spec, stage.mesh)
    read = reader(stage)
    metrics = HeldOut({}, {})
    known: set[tuple[tuple[int, ...], ...]] = set()
    with contextlib.closing(batches), stop_signal() as stopping, log, log.phases("training"):
        for step, batch in enumerate(batches, start + 1):
            shapes = _shapes(batch)
            with contextlib.nullcontext() if shapes in known else log.phases("compiling"):
                state, reported = update(state, _on_mesh(batch, stage.mesh), fixed)
            known.add(shapes)
            tokens = TokenCounts(*map(sum, zip(*map(token_counts, batch), strict=True)))
            # Metrics are read one update late, so that the device never waits for the host.
            values = functools.partial(read, step, batch, tokens, len(known), reported)
            log.update(step, values, tokens)
            checkpoints.check()
            last = step == total
            if _due(step, every.eval_every) or last:
                log.flush()
                with log.phases("evaluating"):
                    metrics = evaluate(state, last=last and not best.chooses)
                best.add(step, metrics)
                log.evaluation(step, metrics)
                record_errors(stage, step, metrics)
                last = last or best.over
            stop = stopping(step)
            if _due(step, every.save_every) or stop or last or best.update == step:
                log.flush()  # a state is saved only once its loss is known to be finite
                with log.phases("saving"):
                    checkpoints.save(step, state, best.update)
            if stop:
                checkpoints.wait()
                raise Stopped(f"{stage.name}: stopped and saved after update {step}", stop)
            if last:
                break
    with log.phases("saving"):
        checkpoints.wait()
    return state, metrics


def _on_mesh(batch: tuple[Batch, ...], mesh: Mesh) -> tuple[Batch, ...]:
    return tuple(put_batch(own, mesh) for own in batch)


def _shapes(batch: tuple[Batch, ...]) -> tuple[tuple[int, ...], ...]:
    """The shapes of the arrays of all terms; a step is compiled once for each."""
    return tuple(x.shape for x in jax.tree.leaves(batch))


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def tracker(stage: StageRun, start: int, console: Console, phases: Phases) -> Tracker:
    """The record of a stage's metrics."""
    run = stage.recipe.run
    return Tracker(
        stage.folder,
        stage=stage.name,
        total=stage.updates,
        start=start,
        every=run.log_every,
        tensorboard=run.tensorboard,
        wandb=run.wandb,
        config=resolved(stage.recipe),
        answers=samples.count if (samples := stage.settings.eval_samples) else 0,
        phases=phases,
        console=console,
        enabled=first_process(),
    )


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[int], int]]:
    """Gives a function step -> the signal that asks to stop, or 0; all hosts give the same answer.

    SIGINT is handled like SIGTERM: a KeyboardInterrupt that is raised inside a callback of a
    library is printed there and lost. A thread other than the main one gets no signal.
    """
    if jax.process_count() > 1:
        reached = multihost_utils.reached_preemption_sync_point
        yield lambda step: signal.SIGTERM if reached(step) else 0
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: 0  # Python runs signal handlers in the main thread only
        return
    came: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(n, lambda number, frame: came.append(number)) for n in numbers]
    try:
        yield lambda step: came[0] if came else 0
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
