"""A stage of a recipe made ready to run: its model, its data, its reference."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerFast

from .. import settings
from ..core.batch import Batch
from ..core.objective import Objective
from ..core.sharding import batch_shards, put_batch, replicated
from ..data.loader import Loader
from ..data.pack import CachedStats, cell_size, head_chunks
from ..data.tokenize import Examples, load_examples, preview
from ..errors import UserError
from ..files import read_json, write_whole
from ..hf import load
from ..hf.peft import low_rank
from ..hf.reward import new_head, pad_token, with_scores
from ..models.adapted import Adapted, adapt
from ..models.config import ModelConfig
from ..models.decoder import Model, Params, build
from ..models.quantized import Kind, quantize
from ..recipe.schema import objective_settings, reference_mode
from ..settings import Recipe, Stage
from ..update.forward import Task, sequence_stats
from . import reference


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What training, the reference pass and evaluation share."""

    recipe: Recipe
    name: str
    mesh: Mesh
    source: Path  # the checkpoint that the stage starts from
    model: Model
    tokenizer: PreTrainedTokenizerFast
    task: Task
    train: Examples
    held_out: Examples | None
    console: Console
    adapted: Adapted | None  # the model with the stage's adapters

    @property
    def stage(self) -> Stage:
        """The stage's settings."""
        return self.recipe.stages[self.name]

    @property
    def folder(self) -> Path:
        """The folder of the stage in the folder of the run."""
        return Path(self.recipe.run.dir) / self.name

    @property
    def updates(self) -> int:
        """Updates of the whole stage."""
        return self.stage.steps or self.loader(self.train).steps(self.stage.epochs)

    @property
    def quantized(self) -> Kind | None:
        """How the matrices that adapters stand beside are kept; None: as they are."""
        return self.stage.lora and self.stage.lora.quantize

    @property
    def reference_mode(self) -> str | None:
        """`cached` or `live`; None where the objective has no reference."""
        return reference_mode(self.stage)

    @property
    def moving(self) -> bool:
        """Whether the reference follows the policy, and so is part of the training state."""
        return self.stage.reference.every > 0

    @property
    def policy(self) -> Task:
        """The task as it is trained: where there are adapters, `forward` takes the base first."""
        if self.adapted is None:
            return self.task
        return dataclasses.replace(self.task, forward=self.adapted.forward, trains_head=False)

    def loader(self, examples: Examples, cached: CachedStats | None = None) -> Loader:
        """Batches of a data set as this stage's mesh, microbatches and vocabulary want them."""
        size, microbatches = self.stage.batch_size, self.stage.microbatches
        assert microbatches != "auto", "plan.settled comes first"
        shards, config = batch_shards(self.mesh), self.model.config
        cell = cell_size(size, microbatches, shards)
        scored = examples.responses * config.scores or examples.offsets[-1] / len(examples)
        return Loader(
            examples,
            batch_size=size,
            microbatches=microbatches,
            shards=shards,
            chunks=head_chunks(cell, scored, config.scores or config.vocab),
            scores=config.scores,
            row_length=self.stage.data.row_length,
            shapes=self.stage.data.shapes,
            seed=self.recipe.run.seed,
            cached=cached,
        )

    def held_out_loader(self) -> Loader | None:
        """Batches of the held-out data with their cached reference; None where there is none."""
        if self.held_out is None:
            return None
        return self.loader(self.held_out, cached_reference(self, "held_out"))


def open_model(
    path: Path, wanted: settings.Model, mesh: Mesh, responses: int = 1, scores: int = 0
) -> Model:
    """The model that a Hugging Face folder describes, without its weights.

    Args:
      path: the folder.
      wanted: dtypes and rematerialisation.
      mesh: of all devices.
      responses: most responses that follow a prompt in a row.
      scores: numbers that its head gives; 0: logits of the vocabulary.
    """
    return build(
        with_scores(ModelConfig.from_hf(load.load_config(path)), scores, path),
        mesh,
        dtype=wanted.dtype,
        param_dtype=wanted.param_dtype,
        remat=wanted.remat,
        responses=responses,
    )


def prepare(recipe: Recipe, name: str, source: Path, mesh: Mesh, console: Console) -> Prepared:
    """Read a stage's data and describe its model; print what became of the rows.

    Args:
      recipe: the resolved recipe.
      name: of the stage.
      source: folder of the checkpoint that it starts from.
      mesh: of all devices.
      console: where to print.

    Raises:
      UserError: something in the recipe, the checkpoint or the data does not fit.
    """
    stage = recipe.stages[name]
    objective, hyper = objective_settings(stage)
    tokenizer = load.load_tokenizer(source)
    read = functools.partial(
        load_examples,
        stage.data,
        tokenizer=tokenizer,
        layout=objective.data.__name__,
        seed=recipe.run.seed,
        columns=objective.columns,
    )
    train = read(path=recipe.locate(stage.data.path), split=stage.data.split)
    held_out = None
    if stage.data.eval_path is not None:
        held_out = read(path=recipe.locate(stage.data.eval_path), split=stage.data.eval_split)
    responses = max(examples.responses for examples in (train, held_out) if examples)
    model = open_model(source, recipe.model, mesh, responses, objective.head(hyper))
    if model.config.scores:
        read_data = [examples for examples in (train, held_out) if examples]
        tokenizer.pad_token = pad_token(tokenizer, read_data, model.config)
    adapted = _adapted(recipe, name, model)
    for examples in (train, held_out):
        _check_ids(examples, model, source)
        _check_columns(examples, objective)
    show_data(console, name, train, held_out, tokenizer)
    task = Task(objective, hyper, model.forward, seed=recipe.run.seed)
    return Prepared(
        recipe, name, mesh, source, model, tokenizer, task, train, held_out, console, adapted
    )


def _adapted(recipe: Recipe, name: str, model: Model) -> Adapted | None:
    """The model with the adapters that a stage asks for; None where it trains all parameters."""
    stage = recipe.stages[name]
    if stage.lora is None:
        return None
    if stage.reference.mode == "live" and stage.reference.path is not None:
        raise UserError(
            f"stages.{name}.reference.path: got {stage.reference.path}, but the live reference of "
            "adapters is the model they stand beside; leave path out, or use mode: cached"
        )
    return adapt(model, low_rank(stage.lora, model.config, f"stages.{name}.lora"))


def _check_ids(examples: Examples | None, model: Model, source: Path) -> None:
    """Refuse tokens and positions that the model does not have; jax would clamp them in silence."""
    if examples is None:
        return
    vocab, positions = model.config.vocab, model.config.max_positions
    longest = max(len(e.prompt) + max(map(len, e.responses)) for e in examples.items)
    if longest > positions:
        raise UserError(
            f"data.max_length: a prompt with its response has {longest} tokens, but {source} was "
            f"made for {positions} positions; set data.max_length to {positions} or less"
        )
    top = max(int(ids.max(initial=0)) for e in examples.items for ids in (e.prompt, *e.responses))
    if top >= vocab:
        raise UserError(
            f"{source}: the data has token {top}, but this model's vocabulary has {vocab}; "
            "does the tokenizer belong to the model?"
        )


def _check_columns(examples: Examples | None, objective: Objective[...]) -> None:
    """Refuse an example whose columns the objective cannot use."""
    if examples is None or objective.check is None:
        return
    for example in examples.items:
        if wrong := objective.check(example.columns):
            got = ", ".join(f"{name} {value}" for name, value in example.columns.items())
            raise UserError(f"{example.where}: {wrong}; got {got}; mend or drop the row")


def show_data(
    console: Console,
    name: str,
    train: Examples,
    held_out: Examples | None,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Print what was kept, dropped and cut, and the first two examples with what is scored."""
    for what, examples in (("training", train), ("held out", held_out)):
        if examples is not None:
            table = Table(title=f"{name}: {what} data", title_justify="left", box=None)
            rows = examples.report.table()
            for column in rows[0]:
                table.add_column(column, justify="left" if column == rows[0][0] else "right")
            for row in rows[1:]:
                table.add_row(*row)
            console.print(table)
    console.print(Text("first examples; what is scored stands in ⟦ ⟧", style="dim"))
    for example in train.items[:2]:
        text = Text()
        for piece, scored in preview(example, tokenizer):
            text.append(f"⟦{piece}⟧" if scored else piece, style="green" if scored else "")
        console.print(text, soft_wrap=True)


def reference_source(prepared: Prepared) -> Path:
    """The folder of the reference's checkpoint: the stage's own, or the start of the stage."""
    path = prepared.stage.reference.path
    if path is None:
        return prepared.source
    return load.resolve(prepared.recipe.locate(path), f"stages.{prepared.name}.reference.path")


def frozen_params(prepared: Prepared) -> Params | None:
    """The starting weights that adapters stand beside; None where all parameters are trained.

    A checkpoint holds adapters alone, so the stage's folder remembers what they belong to.

    Raises:
      UserError: the weights are not those that the stage began with.
    """
    if prepared.adapted is None:
        return None
    path, found = prepared.folder / "base.json", load.weights_fingerprint(prepared.source)
    if path.exists():
        before = read_json(path).get("weights")
        if before != found:
            raise UserError(
                f"{prepared.source}: its weights have changed since stage {prepared.name} began "
                f"(SHA-256 {before} in {path}, now {found}); restore them, or delete the folder of "
                "the stage"
            )
    else:
        write_whole(path, json.dumps({"weights": found}))
    return _start(prepared)


def _start(prepared: Prepared) -> Params:
    """The starting weights, as adapters have them beside them."""
    kind = prepared.quantized
    keep = functools.partial(quantize, kind=kind) if kind else None
    return load.load_params(prepared.source, prepared.model, keep)


def first_params(prepared: Prepared) -> Params:
    """What is trained, before the first update: the starting weights, or new adapters.

    A reward head that the starting weights lack is new.
    """
    number = list(prepared.recipe.stages).index(prepared.name)
    key = jax.random.fold_in(jax.random.key(prepared.recipe.run.seed), number)
    if prepared.adapted is not None:
        return prepared.adapted.init(key)
    head = new_head(prepared.source, prepared.model, key)
    return load.load_params(prepared.source, prepared.model, made=head)


def live_reference(prepared: Prepared, frozen: Params | None = None) -> Params | None:
    """The parameters of a reference that runs beside the policy; None where none does.

    Beside `frozen` it is no adapters: the frozen weights themselves, and no second copy of them.
    """
    if prepared.reference_mode != "live":
        return None
    if frozen is not None:
        return {}
    source = reference_source(prepared)
    if ModelConfig.from_hf(load.load_config(source)) != prepared.model.config:
        raise UserError(
            f"stages.{prepared.name}.reference: {source} is another architecture than the policy; "
            "a live reference must be the same, use mode: cached"
        )
    if source == prepared.source:
        return _start(prepared)
    return load.load_params(source, prepared.model)


def cached_reference(prepared: Prepared, split: str) -> CachedStats | None:
    """The cached statistics of a data set, computed now if they are not on disk.

    Args:
      prepared: the stage.
      split: "train" or "held_out".

    Returns:
      Statistics under the reference and under the weights that the stage starts from; None where
      the objective has no reference or it runs live, and reads no `start`.
    """
    found: dict[str, np.ndarray] = {}
    start: dict[str, np.ndarray] = {}
    if prepared.reference_mode == "cached":
        found = _pass(prepared, split, reference_source(prepared), "reference")
    if prepared.task.objective.uses_start:
        same = found and reference_source(prepared) == prepared.source
        start = found if same else _pass(prepared, split, prepared.source, "start")
    return CachedStats(found, start) if found or start else None


def _pass(prepared: Prepared, split: str, source: Path, name: str) -> dict[str, np.ndarray]:
    """The statistics of a data set under a checkpoint, kept in the stage's folder `name`."""
    examples = prepared.train if split == "train" else prepared.held_out
    assert examples is not None
    config = repr(ModelConfig.from_hf(load.load_config(source)))
    fingerprint = {
        "weights": load.weights_fingerprint(source),
        "config": hashlib.sha256(config.encode()).hexdigest(),
        "tokenizer": load.tokenizer_fingerprint(prepared.source),
        "data": examples.fingerprint,
        "dtype": prepared.recipe.model.dtype,
        "needs": ", ".join(s.name for s in prepared.task.objective.needs),
    }
    if prepared.quantized and source == prepared.source:
        fingerprint["quantized"] = prepared.quantized

    def compute() -> reference.Compute:
        prepared.console.print(f"{prepared.name}: {name} pass over {split} data with {source}")
        return reference_forward(prepared, source)

    def progress(done: int, total: int) -> None:
        prepared.console.print(f"{prepared.name}: {name} {split} {done}/{total} examples")

    folder = prepared.folder / name / split
    return reference.cached(folder, fingerprint, prepared.loader(examples), compute, progress)


def reference_forward(prepared: Prepared, source: Path) -> reference.Compute:
    """Load a reference and compile its forward pass over packed batches."""
    responses = prepared.model.responses
    model = open_model(source, prepared.recipe.model, prepared.mesh, responses)
    for examples in (prepared.train, prepared.held_out):
        _check_ids(examples, model, source)
    own = source == prepared.source
    params = _start(prepared) if own else load.load_params(source, model)
    task = dataclasses.replace(prepared.task, forward=model.forward)

    @functools.partial(jax.jit, out_shardings=replicated(prepared.mesh))
    def forward(params: Any, batch: Batch) -> Any:
        return jax.lax.map(lambda cells: sequence_stats(task, params, cells).token, batch)

    return lambda batch: forward(params, put_batch(batch, prepared.mesh))
