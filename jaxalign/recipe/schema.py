"""The schema of a recipe: `settings.Recipe`, with the sections of the objectives that it names."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import pydantic
import typing_extensions
import tyro

from ..core.objective import Objective
from ..errors import near_miss
from ..objectives import OBJECTIVES
from ..settings import (
    Combined,
    Goal,
    PairStage,
    Recipe,
    Rounds,
    SampleStage,
    Score,
    ScoreStage,
    Stage,
    Term,
    TrainingStage,
)
from ..shown import shown
from .own import Own
from .rounds import Complaints, is_rounds, with_goals, written

_typed_dict: Any = typing_extensions.TypedDict  # to a type checker its keys must be literals
STRICT = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False, validate_default=True)
"""How pydantic checks a record and the records in it."""
_STAGE_NAME = re.compile(r"([a-z0-9]+([_-][a-z0-9]+)*-[1-9][0-9]*/)?[a-z0-9]+([_-][a-z0-9]+)*")
"""A stage of a round has the name and the number of the round before its own."""
_TERM_NAME = re.compile(r"[a-z0-9]+([_-][a-z0-9]+)*")
_OTHER_NAMES: dict[str, str] = dict.fromkeys(("lock", "report", "world"), "the folder of a run has")
"""Names that no stage can have, each with what has it."""
_OTHER_METRICS: dict[str, str] = dict.fromkeys(
    ("eval", "samples", "time"), "the metrics of a stage have"
)
"""Names that no term can have, each with what has it."""
Kind = TypeVar("Kind", Stage, Term)


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
        for term, goal in stage.goals().items() if isinstance(stage, TrainingStage) else ():
            section: Any = values
            for key in (*path.split("."), *(("terms", term) if term else ()), "objective"):
                section = section[key]
            if "file" not in section:
                section["name"] = objective_settings(goal)[0]
    return values


def with_mixtures(values: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values of a recipe; a list under `data` becomes a mixture."""

    def full(_: str, goal: Mapping[str, Any]) -> Mapping[str, Any]:
        return (
            {**goal, "data": {"mixture": data}}
            if isinstance(data := goal.get("data"), list)
            else goal
        )

    return with_goals(values, full)


@functools.cache
def _with_section(kind: type[Kind], own: Own) -> type[Kind]:
    """A record with the section of one objective; cached, so that equal records compare equal."""
    record = section_of(own)
    # The whole docstring before `Args`: the parser of tyro moves the first line of an equation.
    about = tyro.conf.arg(help=(record.__doc__ or "").partition("\nArgs:")[0].rstrip())
    return dataclasses.make_dataclass(
        kind.__name__,
        [("objective", Annotated[record, about])],
        bases=(kind,),
        frozen=True,
        kw_only=True,
        namespace={"__doc__": kind.__doc__},
    )


@functools.cache
def _combined(kinds: tuple[tuple[str, type[Term]], ...]) -> type[Combined]:
    """`Combined` with these terms; cached, so that equal stages compare equal."""
    return dataclasses.make_dataclass(
        "Combined",
        [("terms", _typed_dict("Terms", dict(kinds)))],
        bases=(Combined,),
        frozen=True,
        kw_only=True,
        namespace={"__doc__": Combined.__doc__},
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


def _stage_kind(where: str, given: Any, own: Mapping[str, Own], complaints: Complaints) -> type:
    """The schema of one stage, chosen by its kind or by the names of its objectives."""
    for key, kind in _DATA_STAGES.items():
        if isinstance(given, Mapping) and key in given:
            return kind
    if not isinstance(given, Mapping) or "terms" not in given:
        return _goal_kind(Stage, where, given, own, complaints)
    terms = given["terms"]
    for key in (field.name for field in dataclasses.fields(Goal)):
        if key in given:
            complaints[f"{where}.{key}"] = f"a stage with `terms` has none; give {key} in each term"
    if not isinstance(terms, Mapping) or not terms:
        complaints[f"{where}.terms"] = (
            "give at least one, such as dpo: {objective: {name: dpo}, ...}"
        )
        return Combined
    _check_names(f"{where}.terms", terms, _TERM_NAME, _OTHER_METRICS, complaints)
    return _combined(
        tuple(
            (name, _goal_kind(Term, f"{where}.terms.{name}", term, own, complaints))
            for name, term in terms.items()
        )
    )


def _goal_kind(
    kind: type[Kind], where: str, given: Any, own: Mapping[str, Own], complaints: Complaints
) -> type[Kind]:
    """The schema of a stage with one objective, or of a term, chosen by its name."""
    if where in own:
        return _with_section(kind, own[where])
    if not isinstance(given, Mapping) or f"{where}.objective" in complaints:
        return kind  # validation reports it, or its complaint is there already
    match given.get("objective"):
        case {"name": str(name)} if name in OBJECTIVES:
            return _with_section(kind, Own(OBJECTIVES[name]))
        case {"name": name}:
            hint = near_miss(str(name), OBJECTIVES)
            own_file = "; for one of your own also give its `file`"
            complaints[f"{where}.objective.name"] = f"no objective {shown(name)}; {hint}{own_file}"
        case {}:
            complaints[f"{where}.objective.name"] = f"missing; {near_miss('', OBJECTIVES)}"
        case None if kind is Stage:
            kinds = ", ".join(_DATA_STAGES)
            complaints[f"{where}.objective"] = (
                "missing; give objective and data, or `terms`, or make it a stage of "
                f"{kinds} or of rounds (repeat, stages) (got {shown(None)})"
            )
        case other:
            complaints[f"{where}.objective"] = f"give a mapping with a name (got {shown(other)})"
    return kind


def _check_names(
    where: str,
    sections: Mapping[Any, Any],
    pattern: re.Pattern[str],
    others: Mapping[str, str],
    complaints: Complaints,
) -> None:
    """Complain about names of stages or terms that are no names of folders and flags.

    Args:
      where: the dotted path of the sections.
      sections: the sections by name.
      pattern: what a name looks like.
      others: names that mean something else, each with what has it.
      complaints: where to add complaints.
    """
    before: list[str] = []
    for name in map(str, sections):
        if not pattern.fullmatch(name):
            said = "the name is a folder and a flag; use a-z, 0-9, - and _"
        elif name in others:
            said = f"{others[name]} something of this name; choose another"
        elif name.replace("_", "-") in before:
            said = "flags do not distinguish - and _; choose another name"
        else:
            said = ""
        if said:
            complaints[f"{where}.{name}"] = said
        before.append(name.replace("_", "-"))


def _stage_kinds(
    where: str, stages: Any, own: Mapping[str, Own], complaints: Complaints
) -> dict[str, type]:
    """The schema of each stage, by its name."""
    if not isinstance(stages, Mapping):
        return {}
    _check_names(where, stages, _STAGE_NAME, _OTHER_NAMES, complaints)
    kinds: dict[str, type] = {}
    for name, given in stages.items():
        make = _rounds if is_rounds(given) else _stage_kind
        kinds[name] = make(f"{where}.{name}", given, own, complaints)
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
      own: objectives from outside the package, by the dotted path of the stage or the term.
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
