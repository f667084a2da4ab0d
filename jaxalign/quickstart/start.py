"""The start of the quickstart: its data, a byte tokenizer and a random model, on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from ..errors import writing
from ..files import first_process, write_text
from ..hf.save import save_checkpoint
from ..run.stage import describe_model
from ..run.train import claim
from ..settings import Recipe
from . import world


def make_world(recipe: Recipe, mesh: Mesh) -> None:
    """Make the synthetic data, a byte tokenizer and a random model in the folder of the run."""
    settings = recipe.world
    folder = Path(recipe.world_dir)
    if settings is None or (folder / "model").exists():
        return
    claim(recipe)
    if first_process():
        with writing(folder):
            world.make_data(
                folder, seed=settings.seed, train=settings.train, held_out=settings.held_out
            )
            world.make_tokenizer(folder / "start")
        write_text(folder / "start" / "config.json", json.dumps(world.model_config(), indent=1))
    multihost_utils.sync_global_devices("world")
    model = describe_model(folder / "start", recipe.model, mesh)
    with jax.set_mesh(mesh):
        params = model.init(jax.random.key(settings.seed))
    save_checkpoint(
        folder / "model",
        params,
        model,
        source=folder / "start",
        dtype="float32",
        card="# A random model\n\nThe start of the quickstart.\n",
    )


@contextlib.contextmanager
def with_world(recipe: Recipe, mesh: Mesh) -> Iterator[Recipe]:
    """Gives the recipe in a folder that has its synthetic data, and leaves the run's as it is.

    Without such data, or where the run has it, that is the recipe itself; otherwise the data is in
    a temporary folder.
    """
    if recipe.world is None or (Path(recipe.world_dir) / "model").exists():
        yield recipe
        return
    with tempfile.TemporaryDirectory() as folder:
        run = dataclasses.replace(recipe.run, dir=f"{folder}/run")
        made = dataclasses.replace(recipe, run=run)
        make_world(made, mesh)
        yield made
