"""The data of a stage: tokenized once, then read from disk."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
from jax.experimental import multihost_utils
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerFast

from .. import settings
from ..core.objective import Objective
from ..data.cut import Limits
from ..data.encode import Encoder
from ..data.examples import RowCounts, preview
from ..data.sources import raw_records
from ..data.store import Examples
from ..data.stored import Store, stored_examples
from ..data.stream import Known, Stream, only_first
from ..data.tokenize import Job, load_examples
from ..errors import UserError
from ..files import read_text, write_whole
from ..hf.tokenizer import read_template, stop_tokens
from ..models.decoder import Model
from ..recipe.schema import objective_settings
from ..sealed import read_own
from .check_data import check_branches, check_columns, check_ids

SAID_EVERY = 100_000
"""Rows between two lines of progress."""


def store_folder(run: settings.Run) -> Path:
    """The folder of tokenized data sets."""
    return Path(run.token_store or Path(run.dir).absolute().parent / "token_store")


def begin(folder: Path) -> None:
    """Keep the date on which a run began, which is the date of chat templates with a clock."""
    path = folder / "began.txt"
    if not path.exists():
        write_whole(path, datetime.date.today().isoformat())


def began(folder: Path) -> datetime.datetime:
    """The date on which a run began, or today.

    Raises:
      UserError: its file is damaged.
    """
    path = folder / "began.txt"
    text = read_text(path).strip() if path.exists() else datetime.date.today().isoformat()
    try:
        return datetime.datetime.fromisoformat(text)
    except ValueError:
        raise UserError(f"{path}: got {text[:40]!r}; wanted a date like 2026-01-31") from None


def make_encoder(
    recipe: settings.Recipe, data: settings.Data, source: Path, tokenizer: PreTrainedTokenizerFast
) -> Encoder:
    """The tokenizer of a checkpoint with its stop tokens and the chat template of a stage.

    Raises:
      UserError: the file of the template cannot be read, or is empty.
    """
    file = data.chat_template
    template = read_template(None if file is None else recipe.locate(file))
    stops = stop_tokens(source, tokenizer)
    return Encoder(tokenizer, data, stops=stops, template=template, now=began(Path(recipe.run.dir)))


def read_data(
    recipe: settings.Recipe,
    stage: settings.Stage,
    encoder: Encoder,
    console: Console,
) -> tuple[list[Examples], Examples | None]:
    """The sources of a stage's training data, and the held-out data if it has any.

    Of data that are streamed, the first part.

    Raises:
      UserError: the data, the limits and the tokenizer do not fit together.
    """
    objective, _ = objective_settings(stage)
    store = Store(
        store_folder(recipe.run),
        host=jax.process_index(),
        hosts=jax.process_count(),
        wait=multihost_utils.sync_global_devices,
        said=functools.partial(_say, console),
    )

    def read(data: settings.Data, path: str, split: str) -> Examples:
        return stored_examples(
            data,
            recipe.locate(path),
            split,
            encoder,
            objective.layout,
            store,
            seed=recipe.run.seed,
            columns=objective.columns,
        )

    data = stage.data
    owned = [(source.path, data.of(source)) for source in data.sources]
    if data.streaming:
        train = [_first_part(recipe, data, objective, encoder)]
    else:
        train = [read(own, path, own.split) for path, own in owned]
    if data.eval_path is None:
        return train, None
    return train, read(data, data.eval_path, data.eval_split)


def _first_part(
    recipe: settings.Recipe, data: settings.Data, objective: Objective[...], encoder: Encoder
) -> Examples:
    """The examples of the first rows of data that are streamed, which are kept in memory."""
    return load_examples(
        only_first(data),
        recipe.locate(data.path or ""),
        data.split,
        encoder,
        objective.layout,
        seed=recipe.run.seed,
        columns=objective.columns,
    )


def open_stream(
    recipe: settings.Recipe,
    stage: settings.Stage,
    file: Path,
    encoder: Encoder,
    first: Examples,
    model: Model,
    source: Path,
) -> Stream:
    """The training data of a stage that streams them.

    Args:
      recipe: the recipe.
      stage: the settings of the stage.
      file: the file that keeps the number of examples of each part.
      encoder: the tokenizer and its chat template.
      first: the examples of the first part.
      model: the model, which each part is checked against.
      source: folder of the checkpoint of the model, for messages.
    """
    data, (objective, _) = stage.data, objective_settings(stage)
    path = recipe.locate(data.path or "")

    def check(examples: Examples) -> None:
        check_ids(examples, model.spec, source)
        check_columns(examples, objective)
        if model.mesh.devices.flat[0].platform == "tpu":
            check_branches(examples, model)

    return Stream(
        job=Job(data, Limits.of(data), encoder, objective.layout, tuple(objective.columns)),
        rows=functools.partial(
            raw_records, path, data.split, streaming=True, max_line=data.max_line
        ),
        where=path,
        first=first,
        seed=recipe.run.seed,
        check=check,
        kept=read_own(file, Known) if file.exists() else None,
        keep=functools.partial(write_whole, file),
    )


def _say(console: Console, path: str, before: int, rows: int) -> None:
    """Print the progress of tokenizing a data set from time to time."""
    if rows // SAID_EVERY > before // SAID_EVERY:
        console.print(Text(f"{path}: {rows:,} rows tokenized", style="dim"))


def show_data(
    console: Console,
    name: str,
    counts: Sequence[tuple[str, RowCounts]],
    train: Examples,
    encoder: Encoder,
    responses: Sequence[str],
) -> None:
    """Print the rows kept, dropped and cut, and the first two examples with their scored tokens.

    Args:
      console: where to print.
      name: name of the stage.
      counts: title and row counts of each data set.
      train: the training data.
      encoder: the tokenizer with its stop tokens.
      responses: names of the responses of an example; further responses have the last one.
    """
    for what, counted in counts:
        console.print(Text(f"{name}: {what}", style="italic"), soft_wrap=True)
        table = Table(box=None)
        rows = counted.table()
        for column in rows[0]:
            table.add_column(column, justify="left" if column == rows[0][0] else "right")
        for row in rows[1:]:
            table.add_row(*row)
        console.print(table)
    console.print(Text(f"stop tokens: {', '.join(encoder.stops)}", style="dim"))
    console.print(Text("first examples; scored tokens are in ⟦ ⟧", style="dim"))
    for example in train[:2]:
        parts = [("prompt", example._replace(branches=()))]
        for branch in example.branches:
            label = responses[min(branch.response, len(responses) - 1)]
            parts.append((label, example._replace(prompt=example.prompt[:0], branches=(branch,))))
        for label, part in parts:
            text = Text(f"{label}: ", style="bold")
            for piece, scored in preview(part, encoder.tokenizer):
                text.append(f"⟦{piece}⟧" if scored else piece, style="green" if scored else "")
            console.print(text, soft_wrap=True)
