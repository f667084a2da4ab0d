"""jaxalign from its public parts: rows packed by its loader, its jitted step, cached reference.

    python -m benchmarks.race.jaxalign_side FOLDER OBJECTIVE MICROBATCHES ROW_LENGTH

A step includes packing in the loader's thread, the copy to the device and the update. On a GPU
products are bfloat16 of float32 weights.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from jaxalign import settings
from jaxalign.core.sharding import make_mesh, put_batch
from jaxalign.data.examples import Example
from jaxalign.data.store import Examples
from jaxalign.recipe.schema import section
from jaxalign.run.reference import cached_reference
from jaxalign.run.stage import StageRun, prepare
from jaxalign.update.step import Fixed

from ..steps import update_and_state
from . import work
from .pipe import Pipe, Step, run

HYPER = {"dpo": {"beta": work.BETA}, "slpo": {}}


def recipe(folder: Path, name: str, microbatches: int, row_length: int) -> settings.Recipe:
    """The recipe a user would write; `prepared` fills in the data."""
    terms = work.terms(folder)
    stage = settings.Stage(
        objective=section(name)(name=name, **HYPER[name]),
        data=settings.Data(
            path=str(folder / "any.jsonl"),
            max_length=terms.length,
            max_prompt=terms.prompt,
            row_length=row_length,
        ),
        optimizer=settings.Optimizer(
            learning_rate=terms.rate, clip_norm=work.CLIP, schedule="constant"
        ),
        batch_size=terms.batch,
        microbatches=microbatches,
        steps=1,
    )
    dtype = "bfloat16" if jax.default_backend() == "gpu" else "float32"
    return settings.Recipe(
        run=settings.Run(dir=str(folder / f"jaxalign-{name}")),
        model=settings.Model(path=str(folder / "model"), dtype=dtype, remat="dots"),
        stages={name: stage},
    )


def examples(pairs: Sequence[work.Pair]) -> Examples:
    """The pairs in the loader's format."""
    return Examples.of([Example.of(p.prompt, p.chosen, p.rejected) for p in pairs])


def make_step(stage: StageRun) -> Step:
    """An update on the next batch; the first batch of each shape compiles."""
    loader = stage.loader(stage.train, cached_reference(stage, "train", Console(quiet=True)))
    update, state = update_and_state(stage, 1)
    stream = itertools.chain.from_iterable(loader.sequential() for _ in itertools.count())

    def step() -> tuple[float, float]:
        nonlocal state
        batch = put_batch(next(stream), stage.mesh)
        state, out = jax.block_until_ready(update(state, [batch], Fixed()))
        return float(out.loss), float(out.grad_norm)

    return step


def side(pipe: Pipe) -> None:
    """Load, then serve."""
    folder, name, microbatches, row_length = Path(sys.argv[1]), *sys.argv[2:]
    pipe.imported()
    mesh = make_mesh(settings.Mesh(), jax.devices()[:1])
    if jax.default_backend() == "gpu":
        device: Any = jax.devices()[0]
        pipe.peak = lambda: device.memory_stats()["peak_bytes_in_use"] / 1e6
    with jax.set_mesh(mesh):
        run_as = recipe(folder, name, int(microbatches), int(row_length))
        stage = prepare(run_as, name, folder / "model", mesh, Console(quiet=True))
        stage = dataclasses.replace(stage, train=examples(work.load(folder)))
        pipe.serve(make_step(stage), "jaxalign", "jax")


if __name__ == "__main__":
    run(side)
