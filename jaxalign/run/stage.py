"""A stage of a recipe ready to run: its model, its data, its task."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optax
from jax.sharding import Mesh
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from .. import settings
from ..data.encode import Encoder
from ..data.mixture import Mixture, mix
from ..data.store import Examples
from ..errors import UserError
from ..hf import load
from ..hf.kept import Kept
from ..hf.peft import low_rank
from ..hf.reward import with_scores
from ..hf.tokenizer import load_tokenizer, pad_token
from ..models.adapted import Adapted, adapt
from ..models.decoder import Model, build
from ..models.families import read_config
from ..models.spec import Spec
from ..objectives import OBJECTIVES
from ..recipe.schema import objective_settings
from ..update.forward import Task
from ..update.optimizer import Rule
from ..update.state import TrainState, abstract_state
from .check_data import check_columns, check_ids
from .read_data import make_encoder, open_stream, read_data, show_data
from .term import TermRun


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageRun(TermRun):
    """A stage with its data read and its model described; training and evaluation share it.

    It is the first of its terms, with the others.
    """

    others: tuple[TermRun, ...] = ()
    """The other terms of a stage with several."""

    @property
    def terms(self) -> tuple[TermRun, ...]:
        """All terms, the first one first."""
        return (self, *self.others)

    @property
    def policies(self) -> list[Task]:
        """The tasks of all terms as they are trained."""
        return [term.policy for term in self.terms]

    @functools.cached_property
    def updates(self) -> int:
        """Updates of the whole stage."""
        return self.training_loader().updates

    @property
    def rule(self) -> Rule:
        """The optimizer by its settings."""
        return Rule(self.settings.optimizer, self.updates)

    @functools.cached_property
    def tx(self) -> optax.GradientTransformation:
        """The optimizer."""
        return self.rule.tx()

    @property
    def state_spec(self) -> TrainState:
        """Shapes and shardings of the training state."""
        return abstract_state(self.adapted or self.model, self.tx, self.policies)

    def show_data(self, console: Console) -> None:
        """Print what became of the rows of each data set, and the first examples."""
        for term in self.terms:
            responses = term.task.objective.layout.responses
            show_data(console, self.name, term.tables(), term.train, term.encoder, responses)

    def with_recipe(self, recipe: settings.Recipe) -> StageRun:
        """The same stage of another recipe."""
        return self._replace(recipe=recipe)

    def with_kept(self, kept: Kept) -> StageRun:
        """The same stage, which may take its weights from these."""
        return self._replace(kept=kept)

    def _replace(self, **changes: Any) -> StageRun:
        """The same stage with other values in each of its terms."""
        others = tuple(dataclasses.replace(term, **changes) for term in self.others)
        return dataclasses.replace(self, others=others, **changes)

    def with_microbatches(self, count: int) -> StageRun:
        """The same stage with another number of microbatches."""
        stage = dataclasses.replace(self.recipe.stages[self.name], microbatches=count)
        stages = self.recipe.stages | {self.name: stage}
        return self.with_recipe(dataclasses.replace(self.recipe, stages=stages))


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
def in_stage(name: str, term: str = "") -> Iterator[None]:
    """Name the stage, and the term, or the setting in it, in the message of a UserError."""
    try:
        yield
    except UserError as error:
        text, own = str(error), f"stages.{name}."
        if text.startswith((own, f"stage {name}:", f"stage {name},", "model.")):
            raise
        where = f"stage {name}, term {term}: " if term else f"stage {name}: "
        of_term = f"{own}terms.{term}." if term else own
        for place, kind in ((own, settings.Training), (of_term, settings.Goal)):
            keys = [field.name for field in dataclasses.fields(kind)]
            if text.startswith(tuple(f"{key}{end}" for key in keys for end in ".: ")):
                where = place
        raise UserError(where + text) from error


class _Read(NamedTuple):
    """The data of a term, before there is a model."""

    encoder: Encoder
    sources: tuple[Examples, ...]
    train: Examples
    mixture: Mixture
    held_out: Examples | None

    @property
    def both(self) -> list[Examples]:
        """The training data, and the held-out data if there is any."""
        return [examples for examples in (self.train, self.held_out) if examples]


def _prepare(
    recipe: settings.Recipe, name: str, source: Path, mesh: Mesh, console: Console
) -> StageRun:
    stage = recipe.stages[name]
    goals, tokenizer = stage.goals(), load_tokenizer(source)
    found: dict[str, _Read] = {}
    for term, goal in goals.items():
        with in_stage(name, term):
            encoder = make_encoder(recipe, goal.data, source, tokenizer)
            read, held_out = read_data(recipe, goal, encoder, console)
            train, mixture = mix(goal.data.sources, read)
            found[term] = _Read(encoder, tuple(read), train, mixture, held_out)
    every = [examples for read in found.values() for examples in read.both]
    objective, hyper = objective_settings(next(iter(goals.values())))
    branches = max(examples.branches for examples in every)
    model = describe_model(source, recipe.model, mesh, branches, objective.head(hyper))
    if model.spec.scores:
        tokenizer.pad_token = pad_token(tokenizer, every, model.spec)
    adapted = _adapted(recipe, name, model)
    check_balance(stage.router_balance, model.spec)
    terms: list[TermRun] = []
    for term, read in found.items():
        with in_stage(name, term):
            terms.append(_term(recipe, name, term, read, model, source, adapted, tokenizer))
    first, *others = _sharing(terms)
    own = {field.name: getattr(first, field.name) for field in dataclasses.fields(TermRun)}
    return StageRun(**own, others=tuple(others))


def _term(
    recipe: settings.Recipe,
    name: str,
    term: str,
    read: _Read,
    model: Model,
    source: Path,
    adapted: Adapted | None,
    tokenizer: PreTrainedTokenizerFast,
) -> TermRun:
    """One term of a stage, whose data are checked against its objective and the model."""
    stage = recipe.stages[name]
    goal = stage.goals()[term]
    objective, hyper = objective_settings(goal)
    for examples in read.both:
        check_ids(examples, model.spec, source)
        check_columns(examples, objective)
    stream = None
    if goal.data.streaming:
        file = Path(recipe.run.dir) / name / (f"stream-{term}.json" if term else "stream.json")
        stream = open_stream(recipe, goal, file, read.encoder, read.train, model, source)
    return TermRun(
        recipe=recipe,
        name=name,
        term=term,
        mesh=model.mesh,
        source=source,
        model=model,
        adapted=adapted,
        tokenizer=tokenizer,
        encoder=read.encoder,
        task=Task(
            objective,
            hyper,
            model.forward,
            seed=recipe.run.seed,
            router_balance=stage.router_balance,
            weight=stage.terms[term].weight if isinstance(stage, settings.Combined) else 1.0,
            term=term,
            # By its movements alone: the paths of runs differ where their programs do not.
            moves=dataclasses.replace(goal.reference, path=None) if goal.reference.every else None,
            constant_hyper=OBJECTIVES.get(objective.name) is not objective,
        ),
        train=read.train,
        read=read.sources,
        mixture=read.mixture,
        held_out=read.held_out,
        stream=stream,
    )


def _sharing(terms: Sequence[TermRun]) -> list[TermRun]:
    """The terms, those marked whose batches are the ones of a term before them.

    These share its forward pass. A live reference is a forward pass of its own for each term.
    """
    found: list[TermRun] = []
    for term in terms:
        same = next((other.term for other in found if _same_batches(other, term)), None)
        task = dataclasses.replace(term.task, batch_of=same)
        found.append(dataclasses.replace(term, task=task))
    return found


def _same_batches(a: TermRun, b: TermRun) -> bool:
    def read(term: TermRun) -> tuple[Any, ...]:
        data = dataclasses.replace(term.settings.data, eval_path=None)
        layout = term.task.objective.layout
        return data, term.settings.batch_size, layout, term.train.fingerprint

    live = "live" in (a.reference_mode, b.reference_mode)
    return not live and read(a) == read(b)


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
