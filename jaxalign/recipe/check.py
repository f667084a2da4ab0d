"""The checks of a recipe: each value by itself, then the rules across fields."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import pydantic

from ..core.objective import Objective
from ..diagnostics import problem
from ..settings import (
    Data,
    Goal,
    PairStage,
    Recipe,
    Reference,
    SampleStage,
    ScoreStage,
    Stage,
    TrainingStage,
    pair,
    sample,
)
from ..shown import shown
from .diff import leaves
from .record import complaints_of, refused
from .rounds import Complaints, written, written_out
from .schema import objective_settings, reference_mode
from .scorers import scorers_of

SHARE_ERROR = 1e-6
"""How far from 1 the shares of all sources of a mixture may sum to."""


def validate(
    schema: type[Recipe], values: Any, place: Callable[[str], str], complaints: Complaints
) -> Recipe:
    """Check values and convert them to an instance of the schema.

    Args:
      schema: the class that `schema.schema` has made for these values.
      values: a mapping, or an instance of the schema.
      place: maps the dotted path of a setting to its name in messages.
      complaints: complaints that were found before.

    Raises:
      UserError: a value is wrong; the message lists every complaint.
    """
    recipe = None
    try:
        recipe = pydantic.TypeAdapter(schema).validate_python(values)
    except pydantic.ValidationError as e:
        complaints = complaints_of(schema, e) | complaints
    if recipe is not None:
        complaints = _truths(values, recipe) | _misfits(recipe) | complaints
    if recipe is None or complaints:
        raise refused(complaints, place)
    return recipe


def _truths(values: Any, recipe: Recipe) -> Complaints:
    """Complaints about true and false where a number is wanted, which pydantic takes as 1 and 0."""
    if not isinstance(values, Mapping):
        return {}
    read = dict(leaves(_numbered(dataclasses.asdict(recipe))))
    return {
        path: f"Input should be a number (got {value})"
        for path, value in leaves(_numbered(values))
        if isinstance(value, bool) and isinstance(read.get(path), int | float)
        if not isinstance(read[path], bool)
    }


def _numbered(value: Any) -> Any:
    """Nested mappings; a list is a mapping by number."""
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    return {str(k): _numbered(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _misfits(recipe: Recipe) -> Complaints:
    """Values that are valid by themselves and do not fit together."""
    flat, found = written_out(recipe)
    every = dict(written(recipe))
    training = {where: stage for where, stage in every.items() if isinstance(stage, TrainingStage)}
    # Where an objective is wrong, the schema has said so, and no rule about objectives applies.
    goals = [goal for stage in training.values() for goal in stage.goals().values()]
    named = all(dataclasses.is_dataclass(goal.objective) for goal in goals)
    for where, stage in training.items():
        for term, goal in stage.goals().items():
            found |= _placed(where, term, _misfits_of(where, goal, named))
        found |= _misfit_templates(f"{where}.terms", stage.goals())
        found |= _misfit_evaluations(where, stage, named)
    for where, stage in every.items():
        if isinstance(stage, SampleStage):
            wrong = sample.problems(stage.sample)
            found |= {f"{where}.sample.{name}": said for name, said in wrong.items()}
        elif isinstance(stage, ScoreStage):
            found |= scorers_of(stage.score.by, f"{where}.score.by")[1]
        elif isinstance(stage, PairStage):
            wrong = pair.problems(stage.pair)
            found |= {f"{where}.pair.{name}": said for name, said in wrong.items()}
    found |= _misfit_heads(flat.training) if named else {}
    if not training:
        found["stages"] = (
            "no stage trains a model; add one, or use `jaxalign sample`, `score`, `pair`"
        )
    if recipe.world is None:
        for path, value in leaves(dataclasses.asdict(recipe)):
            if "{world}" in str(value):
                found[path] = f"only a recipe with a `world` has that folder (got {shown(value)})"
    return found


def _misfits_of(where: str, stage: Stage, named: bool) -> Complaints:
    """Complaints about a stage with one objective, or about a term as such a stage."""
    found = _misfit_sources(f"{where}.data", stage.data)
    found |= _misfit_sizes(where, stage)
    found |= _misfit_hyper(f"{where}.objective", stage) if named else {}
    found |= _misfit_stream(where, stage, named) if stage.data.streaming else {}
    found |= _misfit_reference(where, stage) if named else {}
    if wrong := _wrong_diagnostics(stage, named):
        found[f"{where}.diagnostics"] = wrong
    return found


def _placed(where: str, term: str, complaints: Complaints) -> Complaints:
    """Complaints about a term as a stage of its own, each at the place of its setting."""
    if not term:
        return complaints
    own = tuple(f"{where}.{field.name}" for field in dataclasses.fields(Goal))
    return {
        f"{where}.terms.{term}{path.removeprefix(where)}" if path.startswith(own) else path: said
        for path, said in complaints.items()
    }


def _misfit_templates(where: str, goals: Mapping[str, Stage]) -> Complaints:
    """Complaints about terms with other chat templates than the first, which is exported."""
    first = next(iter(goals.values())).data.chat_template if goals else None
    said = "the terms of a stage have one chat template, which is exported with the model"
    return {
        f"{where}.{term}.data.chat_template": f"{said}; wanted {first!r} (got {file!r})"
        for term, goal in goals.items()
        if (file := goal.data.chat_template) != first
    }


def _misfit_evaluations(where: str, stage: TrainingStage, named: bool) -> Complaints:
    """Complaints about settings that read the evaluations of a stage, and about those it lacks."""
    found: Complaints = {}
    goals, best, samples = stage.goals().values(), stage.keep_best, stage.eval_samples
    no_data = all(goal.data.eval_path is None for goal in goals)
    if samples is not None:
        if samples.prompts is None and no_data:
            found[f"{where}.eval_samples"] = (
                "needs prompts; give eval_samples.prompts or held-out data"
            )
        scored = [
            chosen for goal in goals if named and (chosen := objective_settings(goal)[0]).scores
        ]
        for chosen in scored[:1]:
            said = f"{chosen.name} trains a reward head, which gives no answers; leave it out"
            found[f"{where}.eval_samples"] = said
    if best is not None:
        if stage.eval_every == 0:
            said = "keep_best compares evaluations; set it to a number of updates (got 0)"
            found[f"{where}.eval_every"] = said
        if no_data and (samples is None or samples.prompts is None):
            found[f"{where}.keep_best"] = "needs held-out metrics; give data.eval_path"
    return found


def _misfit_sources(where: str, data: Data) -> Complaints:
    """Complaints about the path, or the mixture, of a data set."""
    if data.mixture is None:
        return {} if data.path else {f"{where}.path": "missing; give a path, or data.mixture"}
    if data.path is not None:
        return {f"{where}.path": f"give a path or data.mixture, not both (got {shown(data.path)})"}
    if not data.mixture:
        return {f"{where}.mixture": "give at least one source, such as {path: a.jsonl} (got [])"}
    for i, source in enumerate(data.mixture):
        if source.share is not None and source.rows is not None:
            return {
                f"{where}.mixture.{i}.rows": f"give a share or rows, not both (got {source.rows})"
            }
    shares = [source.share for source in data.mixture if source.share is not None]
    total = math.fsum(shares)
    said = f"the shares sum to {total:.6g}"
    if len(shares) == len(data.mixture) and abs(total - 1) > SHARE_ERROR:
        return {f"{where}.mixture": f"{said}; where every source has one, they sum to 1"}
    if len(shares) < len(data.mixture) and total >= 1:
        return {f"{where}.mixture": f"{said}; next to sources without a share, to less than 1"}
    return {}


def _misfit_sizes(where: str, stage: Stage) -> Complaints:
    """Complaints about lengths and numbers of a stage that leave no room for one another."""
    found: Complaints = {}
    data, optimizer = stage.data, stage.optimizer
    if data.max_prompt is not None and data.max_prompt >= data.max_length:
        found[f"{where}.data.max_prompt"] = (
            f"leaves no room for a response in max_length {data.max_length}; lower it, leave it "
            f"out for half of max_length, or raise max_length (got {data.max_prompt})"
        )
    if stage.microbatches != "auto" and stage.batch_size % stage.microbatches:
        found[f"{where}.batch_size"] = (
            f"wanted a multiple of microbatches, {stage.microbatches} (got {stage.batch_size})"
        )
    if stage.steps is not None and optimizer.warmup > stage.steps:
        found[f"{where}.optimizer.warmup"] = (
            f"longer than the stage of {stage.steps} steps; lower it, or train for more steps "
            f"(got {optimizer.warmup})"
        )
    return found


def _misfit_hyper(where: str, stage: Stage) -> Complaints:
    """Complaints by the rules of an objective across its hyper-parameters."""
    chosen, hyper = objective_settings(stage)
    if chosen.rules is None:
        return {}
    return {
        f"{where}.{name}": f"{wrong} (got {hyper[name]!r})"
        for name, wrong in chosen.rules(hyper).items()
    }


def _misfit_stream(where: str, stage: Stage, named: bool) -> Complaints:
    """Complaints about a stage that cannot be trained on data that are never there as a whole."""
    found: Complaints = {}
    if stage.data.mixture is not None:
        found[f"{where}.data.mixture"] = "data.streaming reads one data set; give a path or a glob"
    if stage.steps is None:
        said = "data.streaming has no count of examples, so epochs have no length"
        found[f"{where}.steps"] = f"missing; {said}; give the number of steps"
    if not named:
        return found
    chosen, _ = objective_settings(stage)
    needs_all = {
        "responses to other prompts of the data": chosen.layout.borrowed,
        "statistics of the start, computed before training": chosen.uses_start,
        "a pad token chosen by all of the data": chosen.scores is not None,
    }
    for what, wanted in needs_all.items():
        if wanted:
            said = f"{chosen.name} needs {what}; set it to false"
            found[f"{where}.data.streaming"] = f"{said} (got True)"
    if reference_mode(stage) == "cached":
        said = "data.streaming has no examples to compute it of before training; set it to live"
        found[f"{where}.reference.mode"] = f"{said} (got 'cached')"
    return found


def _wrong_diagnostics(stage: Stage, named: bool) -> str:
    """A complaint about the diagnostics of a stage, or ""."""
    if stage.diagnostics and stage.data.eval_path is None:
        return "diagnostics need held-out data; give data.eval_path"
    if not named:
        return ""
    return problem(stage.diagnostics, objective_settings(stage)[0], ref=reference_mode(stage))


def _misfit_reference(where: str, stage: Stage) -> Complaints:
    """Complaints about the reference, and the adapters, of a stage."""
    chosen, _ = objective_settings(stage)
    if chosen.scores is not None:
        return _misfits_of_scores(where, stage, chosen)
    if chosen.reference == "live" and stage.reference.mode != "live":
        said = f"{chosen.name} reads the reference's logits, which are not cached; set it to live"
        return {f"{where}.reference.mode": f"{said} (got {stage.reference.mode!r})"}
    mode, path = stage.reference.mode, stage.reference.path
    if stage.lora is not None and mode == "live" and path is not None:
        said = "the live reference of adapters is their frozen base; leave it out, or use cached"
        return {f"{where}.reference.path": f"{said} (got {path!r})"}
    if stage.reference.every:
        said = ""
        if chosen.reference == "none":
            said = f"{chosen.name} has no reference to update; leave it out"
        elif stage.lora is not None:
            said = "with adapters the reference is the frozen base model; train without lora"
        elif stage.reference.mode != "live":
            said = "a cached reference cannot be updated; set reference.mode to live"
        return {f"{where}.reference.every": f"{said} (got {stage.reference.every})"} if said else {}
    return {}


def _misfits_of_scores(where: str, stage: Stage, chosen: Objective[...]) -> Complaints:
    """Complaints about a stage that trains a reward head."""
    if stage.lora is not None:
        said = f"{chosen.name} trains a reward head, which adapters do not support; leave it out"
        return {f"{where}.lora": said}
    if stage.reference != Reference():
        said = f"{chosen.name} gives scores and has no reference; leave it out"
        return {f"{where}.reference": said}
    return {}


def _misfit_heads(stages: Mapping[str, TrainingStage]) -> Complaints:
    """Complaints about heads that differ from the model of the previous stage, or between terms."""
    found: Complaints = {}
    before = 0
    for name, stage in stages.items():
        trained: int | None = None
        for term, goal in stage.goals().items():
            chosen, hyper = objective_settings(goal)
            scores = chosen.head(hyper)
            wanted = f"{scores} scores" if scores else "a causal language model"
            where = f"stages.{name}.terms.{term}.objective" if term else f"stages.{name}.objective"
            if trained is not None and scores != trained:
                found[where] = (
                    f"{chosen.name} reads {wanted}, and the first term has another head; train it "
                    "in a separate recipe"
                )
            elif before and scores != before:
                found[where] = (
                    f"{chosen.name} reads {wanted}, and the previous stage trains a reward model "
                    f"with {before} scores; train it in a separate recipe"
                )
            trained = scores if trained is None else trained
        before = trained or 0
    return found
