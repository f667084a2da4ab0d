"""The data of a stage, or a data set by itself, inspected with the tokenizer of a checkpoint."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

from .. import settings
from ..core.objective import Objective
from ..data import inspect as data
from ..data.encode import Encoder
from ..data.inspection import Inspection, RowInspection, Source
from ..data.loader import Loader
from ..data.mixture import mix
from ..data.store import Examples
from ..data.stored import Store, stored_examples
from ..data.stream import only_first
from ..data.tokenize import load_examples
from ..errors import UserError, near_miss
from ..hf.load import load_config, resolve
from ..hf.peft import base_folder
from ..hf.tokenizer import load_tokenizer, read_template, stop_tokens
from ..models.families import FAMILIES, read_config
from ..objectives import OBJECTIVES
from ..recipe.overrides import AnyRecipe, Overrides, given_recipe, stage_name
from ..recipe.read import is_recipe
from ..recipe.record import validate_record
from ..recipe.schema import objective_settings
from ..shown import shown as show_value
from .check_data import check_columns, check_ids
from .read_data import store_folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSet(settings.Data):
    """A data set, and the tokenizer and the objective to read it for."""

    path: Annotated[settings.Text, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")] = (
        dataclasses.field()  # without the default that it has in `Data`
    )
    """A file, a glob, a folder or a data set on the hub."""
    model: settings.Text
    """Hugging Face folder or hub repository with the tokenizer; no weights are read."""
    objective: str | None = None
    """Objective that the data is for; none: the kind of data that the columns of the first row
    suit."""
    batch_size: settings.Count = 64
    """Examples per update, for the savings of packing."""
    seed: int = 0
    """Seed of the data order."""
    mixture: Annotated[None, tyro.conf.Suppress] = None
    eval_path: Annotated[str | None, tyro.conf.Suppress] = None
    eval_split: Annotated[str, tyro.conf.Suppress] = "test"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(DataSet):
    """`DataSet` as the command line has it."""

    examples: settings.WholeNumber = 2
    """Number of examples to show."""
    row: settings.Count | None = None
    """Show only this row of the file, by its number in error messages; none: the whole file."""
    json: bool = False
    """Print one JSON object."""


class Opened(NamedTuple):
    """A data set that is ready to be read."""

    data: settings.Data
    """Its settings, and its sources by their paths."""
    encoder: Encoder
    folder: Path
    """Folder of the checkpoint."""
    objective: Objective[...] | None
    batch_size: int
    seed: int
    token_store: Path | None = None
    """Folder of the tokenized data sets of a run; None: no tokens are kept."""

    @property
    def sources(self) -> list[tuple[str, settings.Data]]:
        """The path of each source, and the settings to read it with."""
        return [(source.path, self.data.of(source)) for source in self.data.sources]

    @property
    def wanted(self) -> tuple[str, ...]:
        """What the objective reads besides responses."""
        return self.objective.columns if self.objective else ()


def open_given(
    given: AnyRecipe, stage: str | None, overrides: Overrides, values: Mapping[str, Any]
) -> Opened:
    """Open the data of a stage of a recipe, or a data set by its path and the values of `DataSet`.

    Raises:
      UserError: the values do not fit what is given, or something in them is wrong.
    """
    if isinstance(given, str | os.PathLike) and not is_recipe(os.fspath(given)):
        if stage is not None or overrides is not None:
            raise UserError(f"inspect: {given} is no recipe, so it has no stages and no overrides")
        values = {"path": os.fspath(given), **values}
        return open_data(validate_record(DataSet, values, "inspect"))
    if values:
        raise UserError(
            f"inspect: a recipe has its own settings; got {', '.join(values)}; use overrides"
        )
    recipe = given_recipe(given, overrides)
    name, _, term = (stage or "").partition(".")
    return open_stage_data(recipe, stage_name(recipe, name or None), term)


def open_data(given: DataSet) -> Opened:
    """Open a data set.

    Raises:
      UserError: the objective is unknown, or the checkpoint or the chat template is not there.
    """
    name = given.objective
    if name is not None and name not in OBJECTIVES:
        raise UserError(f"objective: no objective {name!r}; {near_miss(name, OBJECTIVES)}")
    folder = base_folder(resolve(given.model, "model"))
    objective = None if name is None else OBJECTIVES[name]
    # The class of a checked record has no name by which processes that tokenize could load it.
    names = [field.name for field in dataclasses.fields(settings.Data)]
    plain = settings.Data(**{name: getattr(given, name) for name in names})
    return _opened(plain, folder, objective, given.batch_size, given.seed)


def open_stage_data(recipe: settings.Recipe, name: str, term: str = "") -> Opened:
    """Open the training data of a stage, for the tokenizer that the stage will have.

    Args:
      recipe: the recipe.
      name: the name of the stage.
      term: the name of the term of a stage with several; "": the stage has one objective.

    Raises:
      UserError: the checkpoint or the chat template is not there, or the stage has no such term.
    """
    if recipe.world is not None and not Path(recipe.world_dir).is_dir():
        raise UserError(f"{recipe.world_dir}: `jaxalign train` makes this data; train first")
    goals = recipe.stages[name].goals()
    if term not in goals:
        wanted = ", ".join(f"{name}.{k}" if k else name for k in goals)
        raise UserError(
            f"inspect: got stage {show_value(f'{name}.{term}' if term else name)}; give {wanted}"
        )
    stage = goals[term]
    # The model of a stage keeps its chat template, for the stages that start from it.
    names = list(recipe.training)
    firsts = [next(iter(recipe.training[n].goals().values())) for n in names]
    before = [goal.data.chat_template for goal in firsts[: names.index(name) + 1]]
    template = next((file for file in reversed(before) if file is not None), None)
    located: dict[str, Any] = {"chat_template": template and recipe.locate(template)}
    if stage.data.mixture is None:
        located["path"] = recipe.locate(stage.data.path or "")
    else:
        located["mixture"] = tuple(
            dataclasses.replace(source, path=recipe.locate(source.path))
            for source in stage.data.mixture
        )
    return _opened(
        dataclasses.replace(stage.data, **located),
        resolve(recipe.locate(recipe.model.path)),
        objective_settings(stage)[0],
        stage.batch_size,
        recipe.run.seed,
        store_folder(recipe.run),
    )


def inspect(opened: Opened, shown: int = 2) -> Inspection:
    """Read a data set as training would, and describe it.

    Args:
      opened: the data set.
      shown: number of examples to show.

    Raises:
      UserError: a row, the objective or the model does not fit; the message is as in training.
    """
    if opened.token_store is not None:
        return _inspected(opened, Store(opened.token_store), shown)
    with tempfile.TemporaryDirectory() as folder:
        return _inspected(opened, Store(Path(folder)), shown)


def _inspected(opened: Opened, store: Store, shown: int) -> Inspection:
    firsts = [data.first_row(path, own.split) for path, own in opened.sources]
    layout = _layout(opened, *firsts[0])

    def read(path: str, own: settings.Data) -> Examples:
        how: dict[str, Any] = {"seed": opened.seed, "columns": opened.wanted}
        if own.streaming:
            return load_examples(own, path, own.split, opened.encoder, layout, **how)
        return stored_examples(own, path, own.split, opened.encoder, layout, store, **how)

    examples_of = [read(path, own) for path, own in opened.sources]
    examples, mixture = mix(opened.data.sources, examples_of)
    if (opened.folder / "config.json").is_file():
        raw = load_config(opened.folder)
        if raw.get("model_type") in FAMILIES:
            check_ids(examples, read_config(raw), opened.folder)
    if opened.objective is not None:
        check_columns(examples, opened.objective)
    sources = tuple(
        Source(path, data.find_columns(row, where, own, layout, opened.wanted), one.counts, epoch)
        for (path, own), (where, row), one, epoch in zip(
            opened.sources, firsts, examples_of, mixture.draws, strict=True
        )
    )
    loader = Loader(
        examples,
        batch_size=min(opened.batch_size, mixture.epoch),
        microbatches=1,
        shards=1,
        row_length=opened.data.row_length,
        shapes=opened.data.shapes,
        seed=opened.seed,
        mixture=mixture,
    )
    return data.inspect_examples(examples, sources, opened.encoder, layout, loader, shown)


def inspect_row(opened: Opened, number: int) -> RowInspection:
    """Describe what becomes of one row.

    Args:
      opened: the data set.
      number: the number of the row in its file, as in messages, from 1; of several files or
        sources, the first that has one.

    Raises:
      UserError: there is no such row, or the first row fits no layout.
    """
    path, own = opened.sources[0]
    layout = _layout(opened, *data.first_row(path, own.split))
    missing = []
    for path, own in opened.sources:
        try:
            where, row = data.find_row(path, own.split, number)
        except data.NoRowError as error:
            missing.append(str(error))
            continue
        return data.inspect_row(row, where, own, opened.encoder, layout, opened.wanted)
    raise UserError("; ".join(missing))


def _opened(
    given: settings.Data,
    folder: Path,
    objective: Objective[...] | None,
    batch_size: int,
    seed: int,
    token_store: Path | None = None,
) -> Opened:
    if given.streaming:
        given = only_first(given)
    tokenizer = load_tokenizer(folder)
    template = read_template(given.chat_template)
    encoder = Encoder(tokenizer, given, stops=stop_tokens(folder, tokenizer), template=template)
    return Opened(given, encoder, folder, objective, batch_size, seed, token_store)


def _layout(opened: Opened, where: str, row: data.Raw) -> data.Layout:
    if opened.objective is not None:
        return opened.objective.layout
    return data.find_layout(row, where, opened.sources[0][1])
