"""Everything of a run that can be checked before its first stage trains.

The data of every stage is tokenized first, as the stage would do later from the same store, so a
mistake in the last row of the last stage costs no training. A later stage is checked with the model
that the first one starts from: training changes weights, and nothing that is checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh
from rich.console import Console

from ..hf import load
from ..hf.reward import lacks_head
from ..models.quantized import is_quantized
from ..settings import Recipe
from .best import check_metric
from .data_stage import check_data_stage, waits, waits_for_data
from .phases import Phases
from .reference import reference_model
from .room import check_room, need
from .samples import check_samples
from .stage import StageRun, in_stage, prepare
from .term import TermRun
from .tracking import import_wandb
from .weights import reference_source


def model_folder(recipe: Recipe, name: str) -> Path:
    """The folder of a finished stage's model; it exists only once it is complete."""
    return Path(recipe.product(name))


def pending(recipe: Recipe) -> list[str]:
    """The stages that are not finished."""
    return [name for name in recipe.stages if not Path(recipe.product(name)).exists()]


def check_stages(
    recipe: Recipe, mesh: Mesh, console: Console, clocks: Mapping[str, Phases]
) -> None:
    """Check all stages that are not finished, and the room on the disk for them.

    Args:
      recipe: the recipe.
      mesh: the device mesh.
      console: where to print the progress of tokenizing.
      clocks: the clock of each stage that is not finished.

    Raises:
      UserError: a stage cannot be trained; names the stage and its mistake.
      RunError: the disk has no room for the run.
    """
    needs = {stage.name: need(stage) for stage in checked_stages(recipe, mesh, console, clocks)}
    check_room(Path(recipe.run.dir), needs)


def checked_stages(
    recipe: Recipe, mesh: Mesh, console: Console, clocks: Mapping[str, Phases]
) -> Iterator[StageRun]:
    """The stages that train and are not finished, prepared and checked; see `check_stages`.

    A stage with `microbatches: auto` has 1. A stage whose data is still to be made is left out.
    """
    if recipe.run.wandb is not None:
        import_wandb(recipe.run.wandb)
    source = load.resolve(recipe.locate(recipe.model.path))
    for name in recipe.stages:
        if name not in recipe.training:
            if name in clocks:
                check_data_stage(recipe, name, source, mesh)
            continue
        if name not in clocks:
            source = model_folder(recipe, name)
            continue
        if waits_for_data(recipe, name):
            continue
        with jax.set_mesh(mesh), clocks[name]("reading data"):
            stage = prepare(recipe, name, source, mesh, console)
            if stage.settings.microbatches == "auto":
                stage = stage.with_microbatches(1)
            with in_stage(name):
                check_stage(stage)
        yield stage


def check_stage(stage: StageRun) -> None:
    """Refuse a stage whose batches, optimizer, weights or reference do not fit.

    Raises:
      UserError: names the mistake.
    """
    for term in stage.terms:
        with in_stage(stage.name, term.term):
            term.training_loader()  # the batch is cut evenly
    assert stage.state_spec is not None  # the optimizer reads its settings
    head = ("head",) if lacks_head(stage.source, stage.model.spec) else ()
    load.check_weights(stage.source, stage.model, head)
    if stage.quantized is not None:
        leaves: dict[tuple[str, ...], Any] = flatten_dict(stage.model.abstract)
        for path, leaf in leaves.items():
            is_quantized(path, leaf.shape, stage.quantized)
    check_samples(stage)
    check_metric(stage)
    for term in stage.terms:
        if term.reference_mode is not None:
            with in_stage(stage.name, term.term):
                _check_reference(term)


def _check_reference(term: TermRun) -> None:
    if waits(term.recipe, term.settings.reference.path or ""):
        return  # a model that is still to be trained is of the architecture that it starts from
    source = reference_source(term)
    live = term.reference_mode == "live"
    model = term.model if live else reference_model(term, source)
    if source != term.source:
        load.check_weights(source, model)
