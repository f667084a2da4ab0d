"""The schema of a recipe: `settings.Recipe`, with the sections of the objectives that it names."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic
import typing_extensions
import tyro

from ..core.objective import Objective
from ..errors import near_miss
from ..objectives import OBJECTIVES
from ..settings import PairStage, Recipe, Rounds, SampleStage, Score, ScoreStage, Stage
from ..shown import shown
from .own import Own
from .rounds import Complaints, is_rounds, mapped, written

_typed_dict: Any = typing_extensions.TypedDict  # to a type checker its keys must be literals
STRICT = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False, validate_default=True)
"""How pydantic checks a record and the records in it."""
_STAGE_NAME = re.compile(r"([a-z0-9]+([_-][a-z0-9]+)*-[1-9][0-9]*/)?[a-z0-9]+([_-][a-z0-9]+)*")
"""A stage of a round has the name and the number of the round before its own."""
_OTHER_NAMES = ("lock", "report", "world")
"""Names that the folder of a run has for something else."""


def objective_settings(stage: Stage) -> tuple[Objective[...], dict[str, Any]]:
    """The objective of a stage and its hyper-parameters, ready for `Objective.bind`."""
    chosen = type(stage.objective).OBJECTIVE
    return chosen, {key: getattr(stage.objective, key) for key in chosen.hyper}


def reference_mode(stage: Stage) -> str | None:
    """`cached` or `live`; None where the objective of a stage has no reference."""
    return stage.reference.mode if objective_settings(stage)[0].uses_ref else None


def section(name: str) -> type:
    """The section of a built-in objective."""
    return section_of(Own(OBJECTIVES[name]))


@functools.cache
def section_of(own: Own) -> type:
    """A frozen dataclass with the `name` and the hyper-parameters of an objective.

    Fields, ranges and defaults come from the signature; help comes from the docstring. The class
    attribute `OBJECTIVE` is the objective itself. Cached, so that equal sections compare equal.
    """
    chosen, name = own.objective, own.objective.name
    hints = typing.get_type_hints(chosen.fn, include_extras=True)
    about_name = tyro.conf.arg(help="The objective; only the recipe can change it.")
    fields: list[Any] = [("name", Annotated[Literal[name], about_name])]
    if own.file:
        hidden = tyro.conf.Suppress
        for key, value in (("file", own.file), ("file_sha256", own.sha256)):
            fields.append((key, Annotated[Literal[value], hidden], value))
    for key, parameter in chosen.hyper.items():
        given = {} if parameter.default is parameter.empty else {"default": parameter.default}
        fields.append((key, hints[key], dataclasses.field(**given)))
    namespace = {"__doc__": inspect.getdoc(chosen.fn), "OBJECTIVE": chosen}
    return dataclasses.make_dataclass(name, fields, frozen=True, kw_only=True, namespace=namespace)


def with_objects(values: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Put the Python objects of a recipe's own objectives into its resolved values, for `parse`."""
    for path, stage in written(recipe):
        if isinstance(stage, Stage):
            section: Any = values
            for key in (*path.split("."), "objective"):
                section = section[key]
            if "file" not in section:
                section["name"] = objective_settings(stage)[0]
    return values


def with_mixtures(values: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values of a recipe; a list under `data` becomes a mixture."""

    def full(where: str, stage: Any) -> Any:
        listed = isinstance(stage, Mapping) and isinstance(stage.get("data"), list)
        return {**stage, "data": {"mixture": stage["data"]}} if listed else stage

    if not isinstance(values.get("stages"), Mapping):
        return dict(values)
    return {**values, "stages": mapped(values["stages"], full)}


@functools.cache
def _stage(own: Own) -> type:
    """`Stage` with the section of one objective; cached, so that equal stages compare equal."""
    record = section_of(own)
    # The whole docstring before `Args`: the parser of tyro moves the first line of an equation.
    about = tyro.conf.arg(help=(record.__doc__ or "").partition("\nArgs:")[0].rstrip())
    return dataclasses.make_dataclass(
        "Stage",
        [("objective", Annotated[record, about])],
        bases=(Stage,),
        frozen=True,
        kw_only=True,
        namespace={"__doc__": Stage.__doc__},
    )


_ANY: Any = Annotated[Any, tyro.conf.Fixed]
_SCORE = dataclasses.make_dataclass(
    "Score",
    [("by", _ANY)],
    bases=(Score,),
    frozen=True,
    kw_only=True,
    namespace={"__doc__": Score.__doc__},
)
"""`Score`, whose scorers only the recipe can give; `scorers.scorers_of` checks them."""
_SCORE_STAGE = dataclasses.make_dataclass(
    "ScoreStage",
    [("score", _SCORE)],
    bases=(ScoreStage,),
    frozen=True,
    kw_only=True,
    namespace={"__doc__": ScoreStage.__doc__},
)
_DATA_STAGES = {"sample": SampleStage, "score": _SCORE_STAGE, "pair": PairStage}


def _stage_kind(where: str, given: Any, own: Own | None, complaints: Complaints) -> type:
    """The schema of one stage, chosen by its kind or by the name of its objective."""
    if own is not None:
        return _stage(own)
    if not isinstance(given, Mapping) or f"{where}.objective" in complaints:
        return Stage  # validation reports it, or its complaint is there already
    for key, kind in _DATA_STAGES.items():
        if key in given:
            return kind
    match given.get("objective"):
        case {"name": str(name)} if name in OBJECTIVES:
            return _stage(Own(OBJECTIVES[name]))
        case {"name": name}:
            hint = near_miss(str(name), OBJECTIVES)
            own_file = "; for one of your own also give its `file`"
            complaints[f"{where}.objective.name"] = f"no objective {shown(name)}; {hint}{own_file}"
        case {}:
            complaints[f"{where}.objective.name"] = f"missing; {near_miss('', OBJECTIVES)}"
        case None:
            kinds = ", ".join(_DATA_STAGES)
            complaints[f"{where}.objective"] = (
                f"missing; give a mapping with a name, or make it a stage of {kinds} or of rounds "
                f"(repeat, stages) (got {shown(None)})"
            )
        case other:
            complaints[f"{where}.objective"] = f"give a mapping with a name (got {shown(other)})"
    return Stage


def _stage_kinds(
    where: str, stages: Any, own: Mapping[str, Own], complaints: Complaints
) -> dict[str, type]:
    """The schema of each stage, by its name."""
    kinds: dict[str, type] = {}
    for name, given in stages.items() if isinstance(stages, Mapping) else ():
        path = f"{where}.{name}"
        if not isinstance(name, str) or not _STAGE_NAME.fullmatch(name):
            complaints[path] = "the name is a folder and a flag; use a-z, 0-9, - and _"
        if name in _OTHER_NAMES:
            said = "the folder of a run has something of this name; choose another"
            complaints[path] = said
        if str(name).replace("_", "-") in (other.replace("_", "-") for other in kinds):
            complaints[path] = "flags do not distinguish - and _; choose another name"
        if is_rounds(given):
            kinds[name] = _rounds(path, given, own, complaints)
        else:
            kinds[name] = _stage_kind(path, given, own.get(path), complaints)
    return kinds


def _rounds(
    where: str, given: Mapping[str, Any], own: Mapping[str, Own], complaints: Complaints
) -> type:
    """The schema of rounds."""
    stages = given.get("stages")
    for name, stage in stages.items() if isinstance(stages, Mapping) else ():
        if is_rounds(stage):
            complaints[f"{where}.stages.{name}"] = "rounds within rounds are not supported"
            return Rounds
    if not stages:
        complaints[f"{where}.stages"] = "give at least one stage to repeat"
    inner = _stage_kinds(f"{where}.stages", stages, own, complaints)
    return dataclasses.make_dataclass(
        "Rounds",
        [("stages", _typed_dict("Stages", inner))],
        bases=(Rounds,),
        frozen=True,
        kw_only=True,
        namespace={"__doc__": Rounds.__doc__},
    )


def schema(
    values: Mapping[str, Any], own: Mapping[str, Own], complaints: Complaints
) -> tuple[type[Recipe], Complaints]:
    """Make the schema of a recipe.

    Args:
      values: the plain values of the recipe.
      own: objectives from outside the package, by the dotted path of their stage.
      complaints: complaints that were found before.

    Returns:
      `Recipe` with the stages of these values, and all complaints so far.
    """
    complaints = dict(complaints)
    stages = values.get("stages")
    if not stages:
        complaints["stages"] = "give at least one, such as sft: {objective: {name: sft}, ...}"
    made = dataclasses.make_dataclass(
        "Recipe",
        [("stages", _typed_dict("Stages", _stage_kinds("stages", stages, own, complaints)))],
        bases=(Recipe,),
        frozen=True,
        kw_only=True,
        namespace={"__doc__": Recipe.__doc__, "__pydantic_config__": STRICT},
    )
    return made, complaints
