"""The functions of data files: sample, score, pair, inspect, and compare."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jax.experimental import multihost_utils
from rich.text import Text

from . import settings
from .collect.pair import Counts
from .collect.verbs import Place, Summary, pair_file, sample_file, score_file
from .comparison.page import write_files
from .comparison.result import Compared
from .comparison.run import compare_models
from .data.inspection import Inspection, RowInspection
from .errors import UserError
from .files import check_out
from .hf.load import resolve
from .recipe.overrides import AnyRecipe, Overrides
from .recipe.record import validate_record
from .run import inspect as inspecting
from .run.devices import devices
from .run.folder import Run
from .settings.compare import Compare
from .settings.pair import Pair
from .settings.sample import Sample
from .settings.score import Score

AnyPath = str | os.PathLike[str]
Dtype = Literal["float32", "bfloat16"]


def sample(
    model: AnyPath | None = None,
    *,
    prompts: AnyPath,
    out: AnyPath,
    endpoint: Mapping[str, Any] | None = None,
    seed: int = 0,
    dtype: Dtype = "bfloat16",
    mesh: settings.Mesh | None = None,
    accept_changes: bool = False,
    **how: Any,
) -> Summary:
    """Sample answers to the prompts of a file, several to each, with their log-probabilities.

    A call that was killed resumes at its first missing part.

    Args:
      model: Hugging Face folder or hub repository, of a model or of an adapter; none: the endpoint
        answers.
      prompts: the file of prompts, or a data set of the hub.
      out: the file to write, JSON lines; it must not exist.
      endpoint: the fields of `settings.endpoint.Endpoint`: `endpoint`, `model`, ...
      seed: seed of the first answer and of the choice of prompts, 0 or more.
      dtype: dtype of parameters and matrix products.
      mesh: sizes of the axes of the device mesh; none: all devices hold all parameters.
      accept_changes: make the parts of an unfinished file again that were made from other inputs.
      how: further fields of `settings.sample.Sample`: `n`, `max_new`, `temperature`, ...

    Returns:
      Numbers of prompts, answers and tokens, the share of answers without an end, and what this
      call did: tokens drawn, tokens per second; requests and price of an endpoint.

    Raises:
      UserError: the prompts, the model and the settings do not fit together, or the file exists.
      RunError: the endpoint failed, or a file cannot be written.
    """
    named = {"prompts": os.fspath(prompts), "model": None if model is None else os.fspath(model)}
    chosen = validate_record(Sample, {**how, **named, "endpoint": endpoint, "seed": seed}, "sample")
    if (chosen.model is None) == (chosen.endpoint is None):
        raise UserError("sample: give either a model or an endpoint")
    with _making(mesh, dtype, accept_changes=accept_changes) as place:
        _check_new(out)
        folder = None if chosen.model is None else resolve(chosen.model, "model")
        return sample_file(chosen, folder, Path(out), seed, place)


def score(
    data: AnyPath,
    by: Any,
    out: AnyPath,
    *,
    combine: settings.score.Combine = "sum",
    dtype: Dtype = "bfloat16",
    mesh: settings.Mesh | None = None,
    accept_changes: bool = False,
) -> Summary:
    """Score the answers of a file.

    A call that was killed resumes at its first missing part.

    Args:
      data: rows with prompt and responses, a pair or a completion: a file, or a data set of the
        hub.
      by: a scorer, or a list of scorers, as in a recipe: {"numeric": {"answer": "answer"}}.
      out: the file to write, JSON lines; it must not exist.
      combine: how the scores of several scorers become one.
      dtype: dtype of models and matrix products.
      mesh: sizes of the axes of the device mesh; none: all devices hold all parameters.
      accept_changes: make the parts of an unfinished file again that were made from other inputs.

    Returns:
      The number of scores, their mean, standard deviation, minimum and maximum, and the reports of
      the scorers: requests, price, position bias.

    Raises:
      UserError: a row, a scorer and the settings do not fit together, or the file exists.
      RunError: a scorer failed, or a file cannot be written.
    """
    given = {"data": os.fspath(data), "by": by, "combine": combine}
    chosen = validate_record(Score, given, "score")
    with _making(mesh, dtype, accept_changes=accept_changes) as place:
        _check_new(out)
        return score_file(chosen, Path(out), place)


def pair(data: AnyPath, how: str, out: AnyPath, *, seed: int = 0, **options: Any) -> Counts:
    """Make training data of scored answers.

    Args:
      data: a file of scored answers.
      how: the method: best_worst, all_pairs, best, labels, ...
      out: the file to write, JSON lines; it must not exist.
      seed: seed of the random choices, 0 or more.
      options: further fields of `settings.pair.Pair`: `margin`, `keep`, `threshold`, ...

    Returns:
      What became of the prompts and their answers.

    Raises:
      UserError: a row and the options do not fit together, no row is made, or the file exists.
    """
    given = {**options, "data": os.fspath(data), "how": how}
    chosen = validate_record(Pair, given, "pair")
    _check_new(out)
    return pair_file(chosen, Path(out), seed)


def inspect(
    data: AnyRecipe,
    *,
    stage: str | None = None,
    examples: int = 2,
    overrides: Overrides = None,
    **settings: Any,
) -> Inspection:
    """Read data as training would, and describe what becomes of it; no weights are read.

    Args:
      data: the path or hub name of a data set, or a recipe, whose training data is read.
      stage: the name of the stage of a recipe, with terms "stage.term"; none: the last.
      examples: number of examples to show.
      overrides: values to use instead of those in the recipe.
      settings: without a recipe, the fields of `run.inspect.DataSet`: `model`, and if needed
        `objective`, `batch_size`, `seed` and the settings of the data.

    Raises:
      UserError: a setting, a row or the checkpoint does not fit.
    """
    return inspecting.inspect(inspecting.open_given(data, stage, overrides, settings), examples)


def inspect_row(
    data: AnyRecipe,
    row: int,
    *,
    stage: str | None = None,
    overrides: Overrides = None,
    **settings: Any,
) -> RowInspection:
    """Describe what becomes of one row, which may be a row that training refuses.

    Args:
      data: the data, as for `inspect`.
      row: the number of the row in its file, as in messages, from 1.
      stage: the name of the stage of a recipe; none: the last.
      overrides: values to use instead of those in the recipe.
      settings: settings as for `inspect`.

    Raises:
      UserError: a setting or the checkpoint does not fit, or there is no such row.
    """
    return inspecting.inspect_row(inspecting.open_given(data, stage, overrides, settings), row)


def compare(
    models: Sequence[AnyPath],
    *,
    prompts: AnyPath,
    by: Any,
    out: AnyPath,
    combine: Literal["sum", "mean", "min"] = "sum",
    reference: AnyPath | None = None,
    held_out: AnyPath | None = None,
    seed: int = 0,
    dtype: Dtype = "bfloat16",
    mesh: settings.Mesh | None = None,
    accept_changes: bool = False,
    **how: Any,
) -> Compared:
    """Compare models by their answers to the same prompts, with the same seeds.

    The answers, the scores and the result are files in a folder. A call that was killed resumes at
    its first missing part, and a second call with the same settings draws nothing again.

    Args:
      models: folders of models, adapters or finished runs (the model of the last stage that
        trains), or hub repositories; the first is the baseline.
      prompts: the file of prompts, or a data set of the hub.
      by: a scorer, or a list of scorers, as for `score`.
      out: the folder of the comparison; it may exist.
      combine: how the scores of several scorers become one.
      reference: a model with the same tokenizer, for the KL divergence.
      held_out: pairs, for the change of their log-probabilities from the reference.
      seed: seed of the first answer of each model and of the choice of prompts, 0 or more.
      dtype: dtype of parameters and matrix products.
      mesh: sizes of the axes of the device mesh; none: all devices hold all parameters.
      accept_changes: make the files and parts again that were made from other inputs.
      how: further fields of `settings.sample.Sample`, without `model` and `endpoint`: `n`, ...

    Raises:
      UserError: the models, the prompts and the settings do not fit together.
      RunError: a scorer failed, or a file cannot be written.
    """
    if own := sorted({"model", "endpoint"} & {*how}):
        raise UserError(f"compare: {own[0]}: the models answer; leave it out")
    given = {"models": tuple(os.fspath(path) for path in models), "by": by, "combine": combine}
    optional = {"reference": reference, "held_out": held_out}
    given |= {k: None if v is None else os.fspath(v) for k, v in optional.items()}
    chosen = validate_record(Compare, given, "compare")
    drawn = validate_record(Sample, {**how, "prompts": os.fspath(prompts), "seed": seed}, "compare")
    with _making(mesh, dtype, accept_changes=accept_changes) as place:
        folders = [_model_folder(path) for path in chosen.models]
        if Path(out).is_file():
            raise UserError(f"--out: {Path(out)} is a file; give a folder")
        found = compare_models(chosen, drawn, folders, Path(out), seed, place)
        page = write_files(found, Path(out))
        place.say(f"page: {page}")
    return found


def _model_folder(path: str) -> Path:
    """The folder of a model: for a run, of the last stage that trains."""
    folder = Path(path).expanduser()
    if (folder / "recipe.yaml").is_file() and not (folder / "config.json").is_file():
        return Run(folder).model()
    return resolve(path, "models")


@contextlib.contextmanager
def _making(mesh: settings.Mesh | None, dtype: Dtype, *, accept_changes: bool) -> Iterator[Place]:
    """Set up jax for a file; its progress is on standard error of the first host."""
    with devices(mesh or settings.Mesh(), dtype) as (found, console):
        console.stderr = True
        yield Place(
            mesh=found,
            dtype=dtype,
            say=lambda text: console.print(Text(text)),
            accept_changes=accept_changes,
        )


def _check_new(out: AnyPath) -> None:
    """Refuse a file to write that is there, or cannot be one.

    Raises:
      UserError: it exists, is a folder, or is in a folder that does not exist.
    """
    check_out(os.fspath(out))
    if Path(out).exists():
        raise UserError(f"--out: {Path(out)} exists; give another file, or delete it")
    # No process writes the file before all have seen that it is new.
    multihost_utils.sync_global_devices(f"new {Path(out).name}")
