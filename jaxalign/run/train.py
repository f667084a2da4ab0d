"""Train the stages of a recipe, one after another; go on where an earlier process stopped."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from rich.console import Console

from ..core.batch import Batch
from ..core.sharding import put_batch
from ..data.loader import Loader
from ..data.pack import token_counts
from ..errors import RunError, UserError
from ..files import first_process, write_whole
from ..hf import load
from ..recipe.diff import differences
from ..recipe.read import dump, read, resolved
from ..settings import Recipe
from ..update.optimizer import learning_rate, optimizer
from ..update.state import abstract_state, initial_state
from ..update.step import TrainState, jitted_step
from . import export
from .checkpoint import Checkpoints
from .evaluate import evaluator, means
from .plan import settled
from .stage import Prepared, cached_reference, first_params, frozen_params, live_reference, prepare
from .tracking import Tracker

FREE_TO_CHANGE = ("run.dir", "run.log_every", "run.tensorboard", "run.wandb", "run.compile_cache",
                  "run.distributed", "mesh.")  # fmt: skip
CLAIM = {f"{name}{end}" for name in ("recipe.yaml", "environment.json") for end in ("", ".tmp")}
"""What the folder of a run holds before anything has come of it."""


class Stopped(Exception):  # noqa: N818
    """The run was asked to stop by a signal and has saved its state."""

    def __init__(self, message: str, number: int):
        """`number` is that of the signal."""
        super().__init__(message)
        self.number = number


def train(recipe: Recipe, mesh: Mesh, console: Console) -> Path:
    """Train every stage that is not finished; returns the folder of the last exported model.

    Raises:
      UserError: the recipe, its data or checkpoints do not fit, or the folder is another run's.
      RunError: a loss is not finite, or a checkpoint could not be saved.
      Stopped: SIGTERM or SIGINT came; the state is saved and the same command goes on from it.
    """
    claim(recipe)
    source = load.resolve(recipe.locate(recipe.model.path))
    for name in recipe.stages:
        out = model_folder(recipe, name)
        if out.exists():
            console.print(f"{name}: finished before, its model is in {out}")
        else:
            with jax.set_mesh(mesh):
                train_stage(settled(prepare(recipe, name, source, mesh, console)))
        source = out
    return source


def model_folder(recipe: Recipe, name: str) -> Path:
    """Where a finished stage's model lies; the folder is there only once it is whole."""
    return Path(recipe.run.dir) / name / "model"


def claim(recipe: Recipe) -> None:
    """Take the folder of the run, or go on in it if what it holds was made by this recipe.

    Raises:
      UserError: it holds another run; names what differs.
    """
    folder = Path(recipe.run.dir)
    path = folder / "recipe.yaml"
    held = {f.name for f in folder.iterdir()} if folder.exists() else set()
    if not held <= CLAIM and not path.exists():
        raise UserError(f"run.dir: {folder} is not empty and holds no run; choose another folder")
    if not held <= CLAIM:
        before = read(str(path), [])
        then, now = (_begun(stages, held) for stages in (before.stages, recipe.stages))
        # A stage of which nothing has come yet may still be mended.
        pending = {*before.stages, *recipe.stages} - {*then, *now}
        free = (*FREE_TO_CHANGE, *(f"stages.{name}." for name in pending))
        changed = differences(resolved(before), resolved(recipe))
        changed = [c for c in changed if not c.startswith(free)]
        changed += [f"stages: {then} -> {now}"] if then != now else []
        if changed:
            raise UserError(
                f"run.dir: {folder} holds another run, which differs in\n  "
                + "\n  ".join(changed)
                + "\nchoose another --run.dir, or delete that folder"
            )
    # Every host has looked before the first one writes.
    multihost_utils.sync_global_devices("claim")
    write_whole(path, dump(recipe))
    write_whole(folder / "environment.json", json.dumps(export.environment(), indent=1))


def _begun(stages: Iterable[str], held: Collection[str]) -> list[str]:
    """The stages up to the last one that has left something in the folder."""
    names = list(stages)
    return names[: max((i for i, name in enumerate(names, 1) if name in held), default=0)]


def train_stage(prepared: Prepared) -> None:
    """Train one stage to its end and export its model."""
    stage = prepared.stage
    loader = prepared.loader(prepared.train, cached_reference(prepared, "train"))
    held_out = prepared.held_out_loader()
    total = prepared.updates
    tx = optimizer(stage.optimizer, total)
    model, objective = prepared.adapted or prepared.model, prepared.task.objective
    abstract = abstract_state(model, tx, objective, moving=prepared.moving)
    checkpoints = Checkpoints(prepared.folder / "checkpoints", stage.keep)
    with contextlib.closing(checkpoints):
        start, state = checkpoints.restore(abstract) or (0, None)
        frozen = frozen_params(prepared)
        known = prepared.moving and state is not None
        ref_params = None if known else live_reference(prepared, frozen)
        if state is None:
            moving = ref_params if prepared.moving else None
            state = initial_state(first_params(prepared), objective, tx, abstract, moving)
        else:
            prepared.console.print(f"{prepared.name}: goes on after update {start} of {total}")
        if prepared.moving:
            ref_params = None  # the state's own, which the first update donates
        loop = Loop(prepared, tx, abstract, ref_params, frozen, held_out)
        state, metrics = loop.run(loader, state, start, total, checkpoints)
        out = model_folder(prepared.recipe, prepared.name)
        if prepared.adapted is not None:
            export.write_adapter(prepared, state.params, out.with_name("adapter"), metrics)
        export.write_model(prepared, state.params, frozen, out, metrics)
    prepared.console.print(f"{prepared.name}: model written to {out}")


class Loop:
    """The updates of one stage: step, report, evaluate, save, stop."""

    def __init__(
        self,
        prepared: Prepared,
        tx: optax.GradientTransformation,
        abstract: TrainState,
        ref_params: Any,
        frozen: Any,
        held_out: Loader | None,
    ):
        """Compile nothing yet; `jax.jit` does so at the first batch of each shape."""
        self._prepared = prepared
        self._ref_params = ref_params
        self._frozen = frozen
        self._held_out = held_out
        self._step = jitted_step(
            prepared.policy, tx, abstract, prepared.mesh, prepared.stage.reference
        )
        names = prepared.stage.diagnostics
        self._evaluate = evaluator(prepared.policy, prepared.mesh, ref_params, frozen, names)

    def run(
        self, loader: Loader, state: TrainState, start: int, total: int, checkpoints: Checkpoints
    ) -> tuple[TrainState, dict[str, float]]:
        """Updates `start` + 1 to `total`.

        Returns:
          The last state, and its held-out metrics.
        """
        prepared, stage = self._prepared, self._prepared.stage
        reporter = Reporter(prepared, total)
        held_out: dict[str, float] = {}
        if start == total:
            return state, self._evaluation(state)
        batches = loader.batches(start, total)
        with (
            contextlib.closing(batches),
            stop_signal() as stopping,
            tracker(prepared, start, total) as out,
        ):
            for step, batch in enumerate(batches, start + 1):
                on_mesh = put_batch(batch, prepared.mesh)
                state, metrics = self._step(state, on_mesh, self._ref_params, self._frozen)
                reporter.add(out, step, batch, metrics)
                checkpoints.check()
                last = step == total
                if _due(step, stage.eval_every) or last:
                    reporter.flush(out)
                    held_out = self._evaluation(state)
                    if held_out:
                        out.log(step, held_out, evaluation=True)
                    reporter.restart_clock()
                stop = stopping(step)
                if _due(step, stage.save_every) or stop or last:
                    reporter.flush(out)  # a state is saved only once its loss is known to be finite
                    checkpoints.save(step, state)
                if stop:
                    checkpoints.wait()
                    raise Stopped(f"{prepared.name}: stopped and saved after update {step}", stop)
        checkpoints.wait()
        return state, held_out

    def _evaluation(self, state: TrainState) -> dict[str, float]:
        if self._held_out is None:
            return {}
        batches = self._held_out.sequential()
        return self._evaluate(state.params, state.objective_state, batches, state.ref_params)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


class Reporter:
    """Reads metrics one update behind, so that the device is never kept waiting for the host."""

    def __init__(self, prepared: Prepared, total: int):
        """Start the clock."""
        self._folder = prepared.folder
        self._every = prepared.recipe.run.log_every
        rate = learning_rate(prepared.stage.optimizer, total)
        self._rates = np.asarray(jax.vmap(rate)(jnp.arange(total)))
        self._total = total
        self._pending: tuple[int, Batch, Any] | None = None
        self._shapes: set[Any] = set()
        self._tokens = np.zeros(2)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave out of the rates what is not training."""
        self._since = time.monotonic()
        self._tokens[:] = 0

    def add(self, out: Tracker, step: int, batch: Batch, metrics: Any) -> None:
        """Take an update's metrics, still being computed, and report those of the one before."""
        self.flush(out)
        self._shapes.add(tuple(x.shape for x in jax.tree.leaves(batch)))
        self._pending = (step, batch, metrics)

    def flush(self, out: Tracker) -> None:
        """Report what is pending.

        Raises:
          RunError: its loss or gradient is not finite; the batch is described on disk.
        """
        if self._pending is None:
            return
        step, batch, metrics = self._pending
        self._pending = None
        # To the host first: any jax operation would wait in the device's queue for the next update.
        metrics = jax.device_get(metrics)
        loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise self._not_finite(step, batch, metrics)
        tokens = token_counts(batch)
        self._tokens += (tokens.real, tokens.slots)
        if step % self._every and step != self._total:
            return
        seconds = max(time.monotonic() - self._since, 1e-9)
        real_rate, slot_rate = self._tokens / seconds
        values = {"loss": loss, "grad_norm": norm, "learning_rate": float(self._rates[step - 1])}
        values |= means(metrics["sums"])
        values |= {
            "tokens": tokens.real,
            "fill": tokens.real / tokens.slots,
            "shared": 1 - tokens.real / tokens.unshared,
            "compiles": len(self._shapes),
            "time/tokens_per_second": real_rate,
            "time/slots_per_second": slot_rate,
        }
        out.log(step, values)
        self.restart_clock()

    def _not_finite(self, step: int, batch: Batch, metrics: Any) -> RunError:
        path = self._folder / f"not_finite-{step:08d}.json"
        examples = {k: np.ravel(v).tolist() for k, v in metrics["examples"].items()}
        ids = batch.example.reshape(-1).tolist()
        loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
        record = {"step": step, "loss": loss, "grad_norm": norm, "example": ids, **examples}
        write_whole(path, json.dumps(record))
        return RunError(
            f"update {step}: loss {loss}, gradient norm {norm} are not finite; the batch's "
            f"examples and statistics are in {path}; the last checkpoint is intact"
        )


def tracker(prepared: Prepared, start: int, total: int) -> Tracker:
    """The record of a stage's metrics."""
    run = prepared.recipe.run
    return Tracker(
        prepared.folder,
        stage=prepared.name,
        total=total,
        start=start,
        tensorboard=run.tensorboard,
        wandb=run.wandb,
        config=resolved(prepared.recipe),
        console=prepared.console,
        enabled=first_process(),
    )


@contextlib.contextmanager
def stop_signal() -> Iterator[Any]:
    """Gives a function step -> the signal that asks to stop, or 0; all hosts answer alike.

    SIGINT is handled like SIGTERM: a KeyboardInterrupt that is raised inside a callback of a
    library is printed there and lost.
    """
    if jax.process_count() > 1:
        reached = multihost_utils.reached_preemption_sync_point
        yield lambda step: signal.SIGTERM if reached(step) else 0
        return
    came: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(n, lambda number, frame: came.append(number)) for n in numbers]
    try:
        yield lambda step: came[0] if came else 0
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
