"""The functions of data files: sample, score, pair, inspect."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from jax.experimental import multihost_utils
from rich.text import Text

from . import settings
from .collect.pair import Counts
from .collect.verbs import Place, Summary, pair_file, sample_file, score_file
from .data.inspection import Inspection, RowInspection
from .errors import UserError
from .files import check_out
from .hf.load import resolve
from .recipe.overrides import AnyRecipe, Overrides
from .recipe.record import validate_record
from .run import inspect as inspecting
from .run.devices import devices
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
    with _making(out, mesh, dtype, accept_changes=accept_changes) as place:
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
    with _making(out, mesh, dtype, accept_changes=accept_changes) as place:
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


@contextlib.contextmanager
def _making(
    out: AnyPath, mesh: settings.Mesh | None, dtype: Dtype, *, accept_changes: bool
) -> Iterator[Place]:
    """Set up jax for a file; its progress is on standard error of the first host."""
    with devices(mesh or settings.Mesh(), dtype) as (found, console):
        _check_new(out)
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
