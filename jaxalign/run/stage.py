"""A stage of a recipe ready to run: its model, its data, its task."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

import optax
from jax.sharding import Mesh
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from .. import settings
from ..core.sharding import batch_shards, held_shards
from ..data.encode import Encoder
from ..data.loader import Batches, Loader
from ..data.mixture import Mixture, mix
from ..data.pack import CachedStats, cell_size, head_chunks
from ..data.store import ROWS, Examples
from ..data.stream import Stream
from ..errors import UserError
from ..hf import load
from ..hf.peft import low_rank
from ..hf.reward import with_scores
from ..hf.tokenizer import load_tokenizer, pad_token
from ..models.adapted import Adapted, adapt
from ..models.decoder import Model, build
from ..models.families import read_config
from ..models.quantized import Kind
from ..models.spec import Spec
from ..recipe.schema import objective_settings, reference_mode
from ..update.forward import Task
from ..update.optimizer import optimizer
from ..update.state import TrainState, abstract_state
from .check_data import check_columns, check_ids
from .read_data import make_encoder, open_stream, read_data, show_data


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageRun:
    """A stage with its data read and its model described; training and evaluation share it."""

    recipe: settings.Recipe
    name: str
    mesh: Mesh
    source: Path
    """Folder of the checkpoint that the stage starts from."""
    model: Model
    adapted: Adapted | None
    """The model with the stage's adapters; none: all parameters are trained."""
    tokenizer: PreTrainedTokenizerFast
    encoder: Encoder
    """The tokenizer with its chat template and stop tokens."""
    task: Task
    train: Examples
    read: tuple[Examples, ...]
    """The sources of `train`."""
    mixture: Mixture
    """How many examples of each source of `train` an epoch has."""
    held_out: Examples | None
    stream: Stream | None = None
    """All training data, if they are not kept; `train` is their first part then."""

    @property
    def settings(self) -> settings.Stage:
        """The stage's section of the recipe."""
        return self.recipe.stages[self.name]

    @property
    def folder(self) -> Path:
        """The stage's folder in the folder of the run."""
        return Path(self.recipe.run.dir) / self.name

    @functools.cached_property
    def updates(self) -> int:
        """Updates of the whole stage."""
        return self.settings.steps or self.training_loader().steps(self.settings.epochs)

    @functools.cached_property
    def tx(self) -> optax.GradientTransformation:
        """The optimizer."""
        return optimizer(self.settings.optimizer, self.updates)

    @property
    def state_spec(self) -> TrainState:
        """Shapes and shardings of the training state."""
        model = self.adapted or self.model
        return abstract_state(model, self.tx, self.task.objective, moving=self.moving)

    @property
    def quantized(self) -> Kind | None:
        """How the frozen matrices under adapters are stored; none: as they are."""
        return self.settings.lora and self.settings.lora.quantize

    @property
    def reference_mode(self) -> str | None:
        """`cached` or `live`; none: the objective has no reference."""
        return reference_mode(self.settings)

    @property
    def moving(self) -> bool:
        """Whether the reference follows the policy, and so is part of the training state."""
        return self.settings.reference.every > 0

    @property
    def policy(self) -> Task:
        """The task as it is trained: with adapters, `forward` takes the base first."""
        if self.adapted is None:
            return self.task
        return dataclasses.replace(self.task, forward=self.adapted.forward, trains_head=False)

    def show_data(self, console: Console) -> None:
        """Print what became of the rows of each data set, and the first examples."""
        first = f", the first {ROWS:,} rows" if self.settings.data.streaming else ""
        tables = [(f"training data{first}", self.train.counts)]
        if len(self.read) > 1:
            sources = zip(self.settings.data.sources, self.read, self.mixture.draws, strict=True)
            tables = [
                (f"training data, {source.path}, {count:,} examples an epoch", examples.counts)
                for source, examples, count in sources
            ]
        if self.held_out is not None:
            tables.append(("held out data", self.held_out.counts))
        responses = self.task.objective.layout.responses
        show_data(console, self.name, tables, self.train, self.encoder, responses)

    def with_microbatches(self, count: int) -> StageRun:
        """The same stage with another number of microbatches."""
        stage = dataclasses.replace(self.settings, microbatches=count)
        recipe = dataclasses.replace(self.recipe, stages=self.recipe.stages | {self.name: stage})
        return dataclasses.replace(self, recipe=recipe)

    def training_loader(self, cached: CachedStats | None = None) -> Loader:
        """Batches of the training data, in the epochs of their mixture."""
        return self.loader(self.train, cached, self.mixture)

    def batches(self, loader: Loader, start: int) -> Batches:
        """The batches of the updates from `start` on, by the training loader."""
        if self.stream is None:
            return loader.batches(start, self.updates)
        examples = self.stream.examples(start * self.settings.batch_size)
        return loader.streamed(examples, start, self.updates)

    def loader(
        self,
        examples: Examples,
        cached: CachedStats | None = None,
        mixture: Mixture | None = None,
    ) -> Loader:
        """Batches of a data set, cut for this stage's mesh, microbatches and vocabulary."""
        size, microbatches = self.settings.batch_size, self.settings.microbatches
        assert microbatches != "auto", "plan.settled comes first"
        shards, spec = batch_shards(self.mesh), self.model.spec
        cell = cell_size(size, microbatches, shards)
        scored = examples.responses * spec.scores or examples.offsets[-1] / len(examples)
        return Loader(
            examples,
            batch_size=size,
            microbatches=microbatches,
            shards=shards,
            chunks=head_chunks(cell, scored, spec.scores or spec.vocab),
            scores=spec.scores,
            row_length=self.settings.data.row_length,
            shapes=self.settings.data.shapes,
            seed=self.recipe.run.seed,
            cached=cached,
            mixture=mixture,
            held=held_shards(self.mesh),
        )


def describe_model(
    path: Path, given: settings.Model, mesh: Mesh, branches: int = 1, scores: int = 0
) -> Model:
    """The model that a Hugging Face folder describes, without its weights.

    Args:
      path: the folder.
      given: dtypes and rematerialization.
      mesh: the device mesh.
      branches: the most branches that share a prompt in a row.
      scores: how many numbers its head gives; 0: logits of the vocabulary.
    """
    return build(
        with_scores(read_config(load.load_config(path)), scores, path),
        mesh,
        dtype=given.dtype,
        param_dtype=given.param_dtype,
        remat=given.remat,
        branches=branches,
    )


def prepare(
    recipe: settings.Recipe, name: str, source: Path, mesh: Mesh, console: Console
) -> StageRun:
    """Read a stage's data and describe its model.

    Args:
      recipe: the resolved recipe.
      name: name of the stage.
      source: folder of the checkpoint that it starts from.
      mesh: the device mesh.
      console: where to print the progress of tokenizing.

    Raises:
      UserError: something in the recipe, the checkpoint or the data does not fit.
    """
    with in_stage(name):
        return _prepare(recipe, name, source, mesh, console)


@contextlib.contextmanager
def in_stage(name: str) -> Iterator[None]:
    """Name the stage, or the setting in it, in the message of a UserError."""
    try:
        yield
    except UserError as error:
        text = str(error)
        settings_of = [field.name for field in dataclasses.fields(settings.Stage)]
        if text.startswith((f"stages.{name}.", f"stage {name}:", "model.")):
            raise
        relative = text.startswith(tuple(f"{key}{end}" for key in settings_of for end in ".: "))
        where = f"stages.{name}." if relative else f"stage {name}: "
        raise UserError(where + text) from error


def _prepare(
    recipe: settings.Recipe, name: str, source: Path, mesh: Mesh, console: Console
) -> StageRun:
    stage = recipe.stages[name]
    objective, hyper = objective_settings(stage)
    tokenizer = load_tokenizer(source)
    encoder = make_encoder(recipe, stage.data, source, tokenizer)
    read, held_out = read_data(recipe, stage, objective, encoder, console)
    train, mixture = mix(stage.data.sources, read)
    both = [examples for examples in (train, held_out) if examples]
    branches = max(examples.branches for examples in both)
    model = describe_model(source, recipe.model, mesh, branches, objective.head(hyper))
    if model.spec.scores:
        tokenizer.pad_token = pad_token(tokenizer, both, model.spec)
    adapted = _adapted(recipe, name, model)
    check_balance(stage.router_balance, model.spec)
    for examples in both:
        check_ids(examples, model.spec, source)
        check_columns(examples, objective)
    streaming = stage.data.streaming
    stream = open_stream(recipe, name, encoder, train, model, source) if streaming else None
    return StageRun(
        recipe=recipe,
        name=name,
        mesh=mesh,
        source=source,
        model=model,
        adapted=adapted,
        tokenizer=tokenizer,
        encoder=encoder,
        task=Task(
            objective,
            hyper,
            model.forward,
            seed=recipe.run.seed,
            router_balance=stage.router_balance,
        ),
        train=train,
        read=tuple(read),
        mixture=mixture,
        held_out=held_out,
        stream=stream,
    )


def check_balance(weight: float, spec: Spec) -> None:
    """Refuse a balance loss for a model whose experts it does not balance."""
    if weight and not spec.routers:
        raise UserError(
            f"router_balance: got {weight}, but model_type '{spec.family}' has no experts to "
            "balance; remove it"
        )
    if weight and any(router.correction for router in spec.routers):
        raise UserError(
            f"router_balance: got {weight}, but model_type '{spec.family}' balances its experts by "
            "a correction of its scores, which stays as it is; remove it"
        )


def _adapted(recipe: settings.Recipe, name: str, model: Model) -> Adapted | None:
    """The model with the adapters that a stage asks for; None if it trains all parameters."""
    stage = recipe.stages[name]
    if stage.lora is None:
        return None
    return adapt(model, low_rank(stage.lora, model.spec, f"stages.{name}.lora"))
