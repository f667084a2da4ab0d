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
from ..settings import Recipe, Stage
from ..shown import shown
from .own import Complaints, Own

_typed_dict: Any = typing_extensions.TypedDict  # to a type checker its keys must be literals
STRICT = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False, validate_default=True)
"""How pydantic checks a record and the records in it."""
_STAGE_NAME = re.compile(r"[a-z0-9]+([_-][a-z0-9]+)*")
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
    for name, stage in recipe.stages.items():
        chosen, section = objective_settings(stage)[0], values["stages"][name]["objective"]
        if "file" not in section:
            section["name"] = chosen
    return values


def with_mixtures(values: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values of a recipe; a list under `data` becomes a mixture."""
    stages = values.get("stages")
    if not isinstance(stages, Mapping):
        return dict(values)
    full = {
        name: {**stage, "data": {"mixture": stage["data"]}}
        if isinstance(stage, Mapping) and isinstance(stage.get("data"), list)
        else stage
        for name, stage in stages.items()
    }
    return {**values, "stages": full}


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


def _stage_kind(where: str, given: Any, own: Own | None, complaints: Complaints) -> type[Stage]:
    """The schema of one stage, chosen by the name of its objective."""
    if own is not None:
        return _stage(own)
    if not isinstance(given, Mapping) or f"{where}.objective" in complaints:
        return Stage  # validation reports it, or its complaint is there already
    match given.get("objective"):
        case {"name": str(name)} if name in OBJECTIVES:
            return _stage(Own(OBJECTIVES[name]))
        case {"name": name}:
            hint = near_miss(str(name), OBJECTIVES)
            own_file = "; for one of your own also give its `file`"
            complaints[f"{where}.objective.name"] = f"no objective {shown(name)}; {hint}{own_file}"
        case {}:
            complaints[f"{where}.objective.name"] = f"missing; {near_miss('', OBJECTIVES)}"
        case other:
            complaints[f"{where}.objective"] = f"give a mapping with a name (got {shown(other)})"
    return Stage


def schema(
    values: Mapping[str, Any], own: Mapping[str, Own], complaints: Complaints
) -> tuple[type[Recipe], Complaints]:
    """Make the schema of a recipe.

    Args:
      values: the plain values of the recipe.
      own: objectives from outside the package, by stage.
      complaints: complaints that were found before.

    Returns:
      `Recipe` with the stages of these values, and all complaints so far.
    """
    complaints = dict(complaints)
    stages = values.get("stages")
    if not stages:
        complaints["stages"] = "give at least one, such as sft: {objective: {name: sft}, ...}"
    kinds: dict[str, type[Stage]] = {}
    for name, given in stages.items() if isinstance(stages, Mapping) else ():
        if not _STAGE_NAME.fullmatch(name):
            complaints[f"stages.{name}"] = "the name is a folder and a flag; use a-z, 0-9, - and _"
        if name in _OTHER_NAMES:
            complaints[f"stages.{name}"] = (
                "the folder of a run has something of this name; choose another"
            )
        if name.replace("_", "-") in (other.replace("_", "-") for other in kinds):
            complaints[f"stages.{name}"] = "flags do not distinguish - and _; choose another name"
        kinds[name] = _stage_kind(f"stages.{name}", given, own.get(name), complaints)
    made = dataclasses.make_dataclass(
        "Recipe",
        [("stages", _typed_dict("Stages", kinds))],
        bases=(Recipe,),
        frozen=True,
        kw_only=True,
        namespace={"__doc__": Recipe.__doc__, "__pydantic_config__": STRICT},
    )
    return made, complaints
