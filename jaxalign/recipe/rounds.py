"""Rounds: stages that a recipe repeats, written out one after another.

The stage `dpo` of the rounds `round` is `round-1/dpo`, `round-2/dpo` and so on; a path `{pairs}`
in it becomes `{round-1/pairs}`: the newest earlier stage of this name.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..errors import near_miss
from ..settings import Recipe, Rounds, TrainingStage

Complaints = dict[str, str]
"""Dotted path -> what is wrong there."""
_BEGINNING = re.compile(r"\{([^{}]*)\}")
WORLD = "world"
_TERM = r"(terms\.[^.]+\.)?"
_DATA = re.compile(
    rf"{_TERM}data\.(path|eval_path|mixture\.path)|(eval_samples|sample)\.prompts|score\.data|"
    r"pair\.data"
)
_MODELS = re.compile(
    rf"{_TERM}reference\.path|sample\.model|score\.by\.(reward_model|\w+\.(model|reference))"
)
"""Dotted paths of the settings of a stage that name data, or a model."""


def names_model(path: str) -> bool:
    """Whether a setting of a stage, by its dotted path, is the path of a model."""
    return _MODELS.fullmatch(path) is not None


def is_rounds(given: Any) -> bool:
    """Whether the plain values of a stage describe rounds."""
    return isinstance(given, Mapping) and "repeat" in given


def with_goals(
    values: Mapping[str, Any], change: Callable[[str, Mapping[str, Any]], Mapping[str, Any]]
) -> dict[str, Any]:
    """The plain values of a recipe, with every section that may have an objective changed.

    Args:
      values: the values; sections that are no mappings stay as they are.
      change: maps the dotted path of a stage or a term, also in rounds, and its values, to new
        values.
    """

    def each(where: str, sections: Any) -> Any:
        if not isinstance(sections, Mapping):
            return sections
        return {name: one(f"{where}.{name}", section) for name, section in sections.items()}

    def one(where: str, section: Any) -> Any:
        if not isinstance(section, Mapping):
            return section
        for key, holds in (("stages", is_rounds(section)), ("terms", "terms" in section)):
            if holds:
                return {**section, key: each(f"{where}.{key}", section.get(key))}
        return change(where, section)

    stages = {"stages": each("stages", values["stages"])} if "stages" in values else {}
    return {**values, **stages}


def written(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    """The stages of a recipe as they are written, each with its dotted path."""
    for name, stage in recipe.stages.items():
        if isinstance(stage, Rounds):
            for inner, repeated in stage.stages.items():
                yield f"stages.{name}.stages.{inner}", repeated
        else:
            yield f"stages.{name}", stage


def written_out(recipe: Recipe) -> tuple[Recipe, Complaints]:
    """The recipe with its rounds written out, and complaints about paths that name no stage."""
    stages: dict[str, Any] = {}
    newest: dict[str, str] = {}
    complaints: Complaints = {}

    def add(name: str, short: str, stage: Any, path: str) -> None:
        kinds = {n: isinstance(stages[full], TrainingStage) for n, full in newest.items()}
        complaints.update(_unknown(stage, path, kinds))
        stages[name] = _renamed(stage, newest)
        newest[short] = newest[name] = name

    for name, stage in recipe.stages.items():
        if not isinstance(stage, Rounds):
            add(name, name, stage, f"stages.{name}")
            continue
        for number in range(1, stage.repeat + 1):
            if (folder := f"{name}-{number}") in recipe.stages:
                said = f"round {number} of '{name}' has the same folder; rename one of them"
                complaints[f"stages.{folder}"] = said
            for inner, repeated in stage.stages.items():
                add(f"{folder}/{inner}", inner, repeated, f"stages.{name}.stages.{inner}")
    return dataclasses.replace(recipe, stages=stages), complaints


def _texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """The texts in a stage, each with its dotted path, without places in lists."""
    if isinstance(value, str):
        yield path, value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _texts(getattr(value, field.name), _under(path, field.name))
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _texts(entry, path)
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _texts(entry, _under(path, key))


def _unknown(stage: Any, where: str, trains: Mapping[str, bool]) -> Complaints:
    """Complaints about paths that begin with no earlier stage, or with one of another kind.

    `trains` says of each earlier stage whether it trains a model.
    """
    found: Complaints = {}
    for path, text in _texts(stage):
        match = _BEGINNING.match(text)
        data, model = _DATA.fullmatch(path), _MODELS.fullmatch(path)
        if match is None or match[1] == WORLD or not (data or model):
            continue
        name = match[1]
        if name not in trains:
            known = near_miss(name, trains) if trains else "no stage is before it"
            said = f"no earlier stage '{name}'; {known}"
        elif trains[name] and data:
            said = f"'{name}' trains a model; name a stage that samples, scores or pairs"
        elif not trains[name] and model:
            said = f"'{name}' makes data; name a stage that trains a model"
        else:
            continue
        found[f"{where}.{path}"] = f"{said} (got {text!r})"
    return found


def _renamed(value: Any, newest: Mapping[str, str], path: str = "") -> Any:
    """A stage whose paths begin with the full names of stages."""
    if isinstance(value, str):
        match = _BEGINNING.match(value)
        named = _DATA.fullmatch(path) or _MODELS.fullmatch(path)
        if match is None or match[1] not in newest or not named:
            return value
        return f"{{{newest[match[1]]}}}{value[match.end() :]}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        changed = {n: _renamed(getattr(value, n), newest, _under(path, n)) for n in names}
        return dataclasses.replace(value, **changed)
    if isinstance(value, list | tuple):
        return type(value)(_renamed(entry, newest, path) for entry in value)
    if isinstance(value, Mapping):
        return {key: _renamed(entry, newest, _under(path, key)) for key, entry in value.items()}
    return value


def _under(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
