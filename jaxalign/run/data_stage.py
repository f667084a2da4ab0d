"""A stage that makes data: it samples, scores or pairs, into `data.jsonl` in its folder."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.experimental import multihost_utils
from jax.sharding import Mesh
from rich.console import Console
from rich.text import Text

from ..collect.endpoint import Client
from ..collect.sampling import check_prompts, open_prompter, read_prompted
from ..collect.score import open_scorers
from ..collect.verbs import Place, Summary, pair_file, sample_file, score_file
from ..digests import kept_sha256
from ..errors import writing
from ..files import first_process, write_whole
from ..hf.kept import Kept
from ..hf.load import resolve
from ..hf.open import open_config
from ..recipe.rounds import names_model
from ..recipe.scorers import read_scorers
from ..settings import PairStage, Recipe, Sample, SampleStage, ScoreStage
from .read_data import began, store_folder
from .stage import in_stage

SUMMARY = "summary.json"
MADE = "made.jsonl"
"""The data until their summary is written, so that a finished stage has both."""


def make_data(
    recipe: Recipe,
    name: str,
    source: Path,
    mesh: Mesh,
    console: Console,
    *,
    accept_changes: bool,
    kept: Kept | None = None,
) -> None:
    """Make the data of a stage, or go on where an earlier process stopped.

    Args:
      recipe: the recipe.
      name: name of the stage.
      source: folder of the model that the stages before have trained.
      mesh: the device mesh.
      console: where to print.
      accept_changes: whether parts that were made from other inputs are made again.
      kept: the weights that the stages before have left on the devices; None: there are none.

    Raises:
      UserError: the settings, the data and the models do not fit together.
      RunError: a scorer or an endpoint failed.
    """
    out = Path(recipe.product(name))
    place = Place(
        mesh=mesh,
        dtype=recipe.model.dtype,
        say=lambda text: console.print(Text(f"{name}: {text}"), soft_wrap=True),
        digest=functools.partial(kept_sha256, folder=store_folder(recipe.run)),
        now=began(Path(recipe.run.dir)),
        accept_changes=accept_changes,
        kept=kept,
    )
    made = out.with_name(MADE)
    with in_stage(name):
        summary = _made(recipe, name, source, made, place)
    write_whole(out.with_name(SUMMARY), json.dumps(summary, indent=1))
    if first_process():
        with writing(out):
            made.replace(out)
    multihost_utils.sync_global_devices(f"data of {name}")


def _made(recipe: Recipe, name: str, source: Path, out: Path, place: Place) -> Summary:
    stage = recipe.stages[name]
    if isinstance(stage, SampleStage):
        how, seed = _sampling(recipe, name)
        folder = None if how.endpoint else sampled_model(recipe, name, source)
        return sample_file(how, folder, out, seed, place)
    if isinstance(stage, ScoreStage):
        return score_file(located(recipe, stage), out, place)
    assert isinstance(stage, PairStage)
    counts = pair_file(
        dataclasses.replace(stage.pair, data=recipe.locate(stage.pair.data)),
        out,
        seed_of(recipe, name),
    )
    for text in counts.lines():
        place.say(text)
    return counts.as_dict()


def sampled_model(recipe: Recipe, name: str, source: Path) -> Path:
    """The folder of the model that answers: `sample.model`, or the model of the stages before.

    Raises:
      UserError: there is no such model.
    """
    given = recipe.stages[name].sample.model
    return source if given is None else resolve(recipe.locate(given), "sample.model")


def located(recipe: Recipe, stage: ScoreStage) -> Any:
    """The settings of a stage of scores, the names of stages in it replaced by their results."""

    def found(value: Any, path: str) -> Any:
        if isinstance(value, str):
            return recipe.locate(value) if names_model(path) else value
        if isinstance(value, Mapping):
            return {key: found(entry, f"{path}.{key}") for key, entry in value.items()}
        return [found(x, path) for x in value] if isinstance(value, list | tuple) else value

    return dataclasses.replace(
        stage.score, data=recipe.locate(stage.score.data), by=found(stage.score.by, "score.by")
    )


def seed_of(recipe: Recipe, name: str) -> int:
    """The seed of a stage that makes data, 0 to 2^31 - 1, from the run's seed and its name."""
    text = f"{recipe.run.seed} {name}"
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 2**31


def check_data_stage(recipe: Recipe, name: str, source: Path, mesh: Mesh) -> None:
    """Check what can be known of a stage before the stages before it have run.

    Args:
      recipe: the recipe.
      name: name of the stage.
      source: folder of the model that the first stage starts from.
      mesh: the device mesh.

    Raises:
      UserError: a file, a model, a scorer or an endpoint is missing.
    """
    stage = recipe.stages[name]
    with in_stage(name):
        if isinstance(stage, SampleStage):
            _check_sample(recipe, name, source)
        elif isinstance(stage, ScoreStage) and not waits(recipe, str(stage.score.by)):
            open_scorers(read_scorers(located(recipe, stage).by), mesh, recipe.model.dtype)


def _check_sample(recipe: Recipe, name: str, source: Path) -> None:
    """Check the prompts, and the model or the endpoint that answers them."""
    how, seed = _sampling(recipe, name)
    if how.endpoint is not None:
        Client(how.endpoint)
    prompts = [] if waits(recipe, recipe.stages[name].sample.prompts) else read_prompted(how, seed)
    if how.endpoint is None and (how.model is None or not waits(recipe, how.model)):
        folder = sampled_model(recipe, name, source)
        encoder = open_prompter(how, folder, began(Path(recipe.run.dir)))
        check_prompts(prompts, encoder, how, open_config(folder))


def _sampling(recipe: Recipe, name: str) -> tuple[Sample, int]:
    """The settings of a stage that samples, with the paths of its files, and its seed."""
    how = recipe.stages[name].sample
    seed = seed_of(recipe, name) if how.seed is None else how.seed
    template = how.chat_template and recipe.locate(how.chat_template)
    prompts = recipe.locate(how.prompts)
    return dataclasses.replace(how, prompts=prompts, chat_template=template), seed


def waits(recipe: Recipe, text: str) -> bool:
    """Whether a path, or values that hold paths, names a stage that is not finished."""
    pending = [n for n in recipe.stages if not Path(recipe.product(n)).exists()]
    return any(f"{{{name}}}" in text for name in pending)


def waits_for_data(recipe: Recipe, name: str) -> bool:
    """Whether a stage that trains reads data of a stage that is not finished."""
    sets = [goal.data for goal in recipe.training[name].goals().values()]
    paths = [source.path for data in sets for source in data.sources]
    paths += [data.eval_path or "" for data in sets]
    samples = recipe.training[name].eval_samples
    paths += [samples.prompts or ""] if samples is not None else []
    return any(waits(recipe, path) for path in paths)
