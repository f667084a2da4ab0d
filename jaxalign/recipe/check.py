"""The values of a recipe, checked: each by itself, then the rules across fields."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pydantic
import typing_extensions

from ..core.objective import Objective
from ..diagnostics import problem
from ..errors import UserError, near_miss
from ..settings import Recipe, Reference, Stage
from .diff import leaves
from .renamed import new_name
from .schema import Complaints, objective_settings, reference_mode


def validate(
    schema: type[Recipe], values: Any, place: Callable[[str], str], complaints: Complaints
) -> Recipe:
    """Values -> an instance of the schema, or one error with every complaint."""
    recipe = None
    try:
        recipe = pydantic.TypeAdapter(schema).validate_python(values)
    except pydantic.ValidationError as e:
        complaints = _complaints(schema, e) | complaints
    for name, stage in recipe.stages.items() if recipe is not None else ():
        complaints |= _misfits(f"stages.{name}", stage)
    if recipe is not None:
        complaints |= _misfit_heads(recipe.stages)
    if recipe is not None and recipe.world is None:
        for path, value in leaves(dataclasses.asdict(recipe)):
            if "{world}" in str(value):
                complaints[path] = f"only a recipe with a `world` has that folder (got {value!r})"
    for name, stage in recipe.stages.items() if recipe is not None else ():
        if wrong := _undiagnosable(stage):
            complaints[f"stages.{name}.diagnostics"] = wrong
    if recipe is None or complaints:
        raise UserError("\n".join(f"{place(path)}: {what}" for path, what in complaints.items()))
    return recipe


def _undiagnosable(stage: Stage) -> str:
    """What is wrong with the diagnostics of a stage; empty if nothing is."""
    if stage.diagnostics and stage.data.eval_path is None:
        return "they are computed on held-out data; give data.eval_path"
    if not dataclasses.is_dataclass(stage.objective):
        return ""  # the objective itself is wrong, which is said elsewhere
    objective, _ = objective_settings(stage)
    return problem(stage.diagnostics, objective, ref=reference_mode(stage))


def _misfits(where: str, stage: Stage) -> Complaints:
    """Settings of a stage, right by themselves, that its objective cannot be trained with."""
    if not dataclasses.is_dataclass(stage.objective):
        return {}  # the objective itself is wrong, which is said elsewhere
    chosen, _ = objective_settings(stage)
    if chosen.scores is not None:
        return _misfits_of_scores(where, stage, chosen)
    if chosen.reference == "live" and stage.reference.mode != "live":
        said = f"{chosen.name} reads the reference's logits, which are not cached; set it to live"
        return {f"{where}.reference.mode": f"{said} (got {stage.reference.mode!r})"}
    if stage.reference.every:
        said = ""
        if chosen.reference == "none":
            said = f"{chosen.name} has no reference that could move; leave it out"
        elif stage.lora is not None:
            said = "the reference of adapters is the model they stand beside; train without lora"
        elif stage.reference.mode != "live":
            said = "a cached reference cannot move; set reference.mode to live"
        return {f"{where}.reference.every": f"{said} (got {stage.reference.every})"} if said else {}
    return {}


def _misfits_of_scores(where: str, stage: Stage, chosen: Objective[...]) -> Complaints:
    """As `_misfits`, where a reward head is trained."""
    if stage.lora is not None:
        said = f"{chosen.name} trains a reward head, which adapters have no place for; leave it out"
        return {f"{where}.lora": said}
    if stage.reference != Reference():
        said = f"{chosen.name} gives scores and has no reference; leave it out"
        return {f"{where}.reference": said}
    return {}


def _misfit_heads(stages: Mapping[str, Stage]) -> Complaints:
    """Stages that cannot start from the model of the stage before: its head is another."""
    found: Complaints = {}
    before = 0
    for name, stage in stages.items():
        if not dataclasses.is_dataclass(stage.objective):
            return {}  # the objective itself is wrong, which is said elsewhere
        chosen, hyper = objective_settings(stage)
        scores = chosen.head(hyper)
        if before and scores != before:
            wanted = f"{scores} scores" if scores else "a causal language model"
            found[f"stages.{name}.objective"] = (
                f"{chosen.name} reads {wanted}, and the stage before leaves a reward model of "
                f"{before}; train it in a recipe of its own"
            )
        before = scores
    return found


def _complaints(schema: type[Recipe], error: pydantic.ValidationError) -> Complaints:
    wanted: dict[str, list[str]] = {}
    got: dict[str, str] = {}
    for e in error.errors():
        path, siblings = _locate(schema, e["loc"])
        got[path] = f" (got {e['input']!r})"
        match e["type"]:
            case "unexpected_keyword_argument" | "extra_forbidden":
                new = new_name(path)
                said = f"unknown; {near_miss(str(e['loc'][-1]), siblings)}"
                said = f"renamed; write {new}" if new else said
            case "missing" | "missing_keyword_only_argument" | "missing_argument":
                said, got[path] = "missing; it has no default", ""
            case "dataclass_type" | "dict_type":
                said = "Input should be a mapping"
            case _:
                said = e["msg"]
        wanted.setdefault(path, []).append(said)  # the branches of a union complain one by one
    return {
        path: " or ".join(said).replace(" or Input should be", " or") + got[path]
        for path, said in wanted.items()
    }


def _locate(schema: type, location: Sequence[int | str]) -> tuple[str, Mapping[str, Any]]:
    """Pydantic's location -> the dotted path of its field, and that field with its siblings."""
    path: list[str] = []
    siblings: Mapping[str, Any] = {}
    fields = _fields(schema)
    for key in map(str, location):
        if not fields:
            break  # what follows names a branch of a union
        path.append(key)
        siblings = fields
        fields = _fields(fields.get(key))
    return ".".join(path), siblings


def _fields(kind: Any) -> Mapping[str, Any]:
    """The fields of a record, or of the record in `record | None`; of anything else, none."""
    for record in (kind, *typing.get_args(kind)):
        if dataclasses.is_dataclass(record) or typing_extensions.is_typeddict(record):
            return typing.get_type_hints(record)
    return {}
