"""Recipes: YAML and command-line flags -> `settings.Recipe`, checked before anything runs."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import typing_extensions
import tyro
import yaml

from ..core.objective import Objective
from ..diagnostics import problem
from ..errors import UserError, near_miss
from ..objectives import OBJECTIVES
from ..settings import Recipe, Reference, Stage

Complaints = dict[str, str]
"""Dotted path -> what is wrong there."""

_typed_dict: Any = typing_extensions.TypedDict  # to a type checker its keys must be literals
RENAMED = {
    "lora.quantise": "lora.quantize",
    "lora.rank_stabilised": "lora.rank_stabilized",
}
"""End of the dotted path of a setting that has another name now -> that name."""

_STAGE_NAME = re.compile(r"[a-z0-9]+([_-][a-z0-9]+)*")


def read(path: str, argv: Sequence[str], *, prog: str | None = None) -> Recipe:
    """A recipe file, with flags over it, to a checked recipe.

    Args:
      path: a YAML file.
      argv: flags such as `--stages.slpo.objective.alpha 0.5`; `--help` prints them all and exits.
      prog: the command that the usage line shows.

    Raises:
      UserError: the file or the value of a flag is wrong; the message lists every complaint.
      SystemExit: a flag is unknown or cannot be parsed (code 2), or `--help` was asked (code 0).
    """
    _refuse_renamed(argv)
    values = _load(path)
    schema, complaints = _schema(values)
    flagged = tyro.cli(
        schema,
        prog=prog,
        description=inspect.getdoc(Recipe),
        args=argv,
        default=_validate(schema, values, lambda where: f"{path}: {where}", complaints),
        config=(tyro.conf.AvoidSubcommands,),
    )
    # Checked again: tyro converts the types of flags but ignores their ranges.
    values = dataclasses.asdict(flagged)
    return _plain(_validate(schema, values, lambda path: f"--{path.replace('_', '-')}", {}))


def parse(values: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """The plain values of a recipe, as its YAML holds them, to a checked recipe.

    Raises:
      UserError: a value is wrong; the message lists every complaint, each after `where`.
    """
    schema, complaints = _schema(values)
    return _plain(_validate(schema, values, lambda path: f"{where}: {path}", complaints))


def resolved(recipe: Recipe) -> dict[str, Any]:
    """Every value of the recipe, defaults too, as plain dicts; `parse` of it gives an equal one."""
    return dataclasses.asdict(recipe)


def dump(recipe: Recipe) -> str:
    """Every value of the recipe, defaults too, as YAML; `read` of it gives an equal one."""
    return yaml.safe_dump(resolved(recipe), sort_keys=False)


def objective_settings(stage: Stage) -> tuple[Objective[...], dict[str, Any]]:
    """The objective of a stage and its hyper-parameters, ready for `Objective.bind`."""
    hyper = dataclasses.asdict(stage.objective)
    return OBJECTIVES[hyper.pop("name")], hyper


def reference_mode(stage: Stage) -> str | None:
    """`cached` or `live`; None where the objective of a stage has no reference."""
    return stage.reference.mode if objective_settings(stage)[0].uses_ref else None


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Where two `resolved` recipes differ: `dotted.path: value before -> value now`."""
    old, new = dict(_leaves(before)), dict(_leaves(now))
    pairs = {k: (old.get(k, "absent"), new.get(k, "absent")) for k in old | new}
    return [f"{k}: {a} -> {b}" for k, (a, b) in pairs.items() if a != b]


@functools.cache
def section(name: str) -> type:
    """An objective's part of a recipe: `name` and its hyper-parameters, as a frozen dataclass.

    Fields, ranges and defaults are those of the signature; help is that of the docstring.
    """
    chosen = OBJECTIVES[name]
    hints = typing.get_type_hints(chosen.fn, include_extras=True)
    about_name = tyro.conf.arg(help="The objective; only the recipe can change it.")
    fields: list[Any] = [("name", Annotated[Literal[name], about_name])]
    for key, parameter in chosen.hyper.items():
        given = {} if parameter.default is parameter.empty else {"default": parameter.default}
        fields.append((key, hints[key], dataclasses.field(**given)))
    namespace = {"__doc__": inspect.getdoc(chosen.fn)}
    return dataclasses.make_dataclass(name, fields, frozen=True, kw_only=True, namespace=namespace)


@functools.cache
def _stage(name: str) -> type:
    """`Stage` with the section of one objective; cached, so that equal stages compare equal."""
    record = section(name)
    # All of the docstring before `Args`: tyro's own parser moves the first line of an equation.
    about = tyro.conf.arg(help=(record.__doc__ or "").partition("\nArgs:")[0].rstrip())
    return dataclasses.make_dataclass(
        "Stage",
        [("objective", Annotated[record, about])],
        bases=(Stage,),
        frozen=True,
        kw_only=True,
        namespace={"__doc__": Stage.__doc__},
    )


def _new_name(path: str) -> str | None:
    """The dotted path of a renamed setting under its new name; None: it was not renamed."""
    for old, new in RENAMED.items():
        if path.endswith(f".{old}"):
            return path.removesuffix(old) + new
    return None


def _refuse_renamed(argv: Sequence[str]) -> None:
    """Raise a UserError for a flag of a setting that has another name now."""
    for flag in (arg.partition("=")[0] for arg in argv if arg.startswith("--")):
        path = flag[2:].replace("-", "_").replace(".no_", ".")
        if new := _new_name(path):
            raise UserError(f"{flag}: renamed; write --{new.replace('_', '-')}")


def _stage_kind(where: str, given: Any, complaints: Complaints) -> type[Stage]:
    """The schema of one stage, chosen by the name of its objective."""
    if not isinstance(given, Mapping):
        return Stage  # validation says what is wrong with it
    match given.get("objective"):
        case {"name": str(name)} if name in OBJECTIVES:
            return _stage(name)
        case {"name": name}:
            hint = near_miss(str(name), OBJECTIVES)
            complaints[f"{where}.objective.name"] = f"no objective {name!r}; {hint}"
        case {}:
            complaints[f"{where}.objective.name"] = f"missing; {near_miss('', OBJECTIVES)}"
        case other:
            complaints[f"{where}.objective"] = f"give a mapping with a name (got {other!r})"
    return Stage


def _schema(values: Mapping[str, Any]) -> tuple[type[Recipe], Complaints]:
    """`Recipe` with the stages, and the objective of each, that these values name."""
    complaints: Complaints = {}
    stages = values.get("stages")
    if not stages:
        complaints["stages"] = "name at least one, such as sft: {objective: {name: sft}, ...}"
    kinds: dict[str, type[Stage]] = {}
    for name, given in stages.items() if isinstance(stages, Mapping) else ():
        if not _STAGE_NAME.fullmatch(name):
            complaints[f"stages.{name}"] = "a stage is a folder and a flag; use a-z, 0-9, - and _"
        if name.replace("_", "-") in (other.replace("_", "-") for other in kinds):
            complaints[f"stages.{name}"] = "flags read - and _ as one; give it another name"
        kinds[name] = _stage_kind(f"stages.{name}", given, complaints)
    config = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False, validate_default=True)
    schema = dataclasses.make_dataclass(
        "Recipe",
        [("stages", _typed_dict("Stages", kinds))],
        bases=(Recipe,),
        frozen=True,
        kw_only=True,
        namespace={"__doc__": Recipe.__doc__, "__pydantic_config__": config},
    )
    return schema, complaints


def _validate(
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
        for path, value in _leaves(dataclasses.asdict(recipe)):
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
                new = _new_name(path)
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


def _plain(recipe: Recipe) -> Recipe:
    """The same values as a `Recipe` proper, so that recipes of the same values are equal."""
    return Recipe(**{f.name: getattr(recipe, f.name) for f in dataclasses.fields(Recipe)})


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


class _Loader(yaml.SafeLoader):
    """`SafeLoader`, but a key must be text and be given once."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            problem = "is given twice" if key.value in seen else None
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                problem = "is not read as text; quote it"
            if problem:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value!r} {problem}", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return node


def _load(path: str) -> dict[str, Any]:
    try:
        values = yaml.load(Path(path).read_bytes(), _Loader)
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}; give the path of a recipe, a YAML file") from None
    except yaml.MarkedYAMLError as e:
        line = f" line {e.problem_mark.line + 1}" if e.problem_mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {e.problem}") from None
    except yaml.YAMLError as e:
        raise UserError(f"{path}: not valid YAML: {e}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is a mapping of run, model and stages (got {values!r})")
    return values
