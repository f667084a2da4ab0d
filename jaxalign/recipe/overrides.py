"""A recipe as Python gives it: a path or values, with other values in it, and its stages."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UserError, near_miss
from ..settings import Recipe
from .read import file_of, parse, parse_written, recipe_values, resolved
from .schema import with_objects

AnyRecipe = str | os.PathLike[str] | Mapping[str, Any] | Recipe
"""The path of a YAML file or the name of a built-in recipe, plain values, or a checked recipe."""
Overrides = Mapping[str, Any] | None
"""{"stages.slpo.steps": 100}: values by the dotted path of their setting."""


def given_recipe(recipe: AnyRecipe, overrides: Overrides) -> Recipe:
    """Check a recipe, with other values in it.

    Raises:
      UserError: the recipe is wrong, or an override names no setting of it.
    """
    if isinstance(recipe, str | os.PathLike):
        path = os.fspath(recipe)
        recipe = parse_written(recipe_values(path), path, folder=file_of(path).parent)
    if isinstance(recipe, Mapping):
        recipe = parse_written(recipe)
    values = with_objects(resolved(recipe), recipe)
    for path, value in (overrides or {}).items():
        *parents, last = path.split(".")
        section: Any = values
        for key in parents:
            section = section[_key(section, key, path)]
        section[_key(section, last, path)] = value
    return parse(values, "overrides")


def _key(section: Any, key: str, path: str) -> str | int:
    """The key of a value in a section, or its place in a list; `path` is for messages."""
    known: Sequence[str] = ()
    if isinstance(section, Mapping):
        known = list(section)
    elif isinstance(section, list):
        known = list(map(str, range(len(section))))
    if key not in known:
        raise UserError(f"overrides: {path}: no '{key}'; {near_miss(key, known)}")
    return int(key) if isinstance(section, list) else key


def stage_name(recipe: Recipe, name: str | None) -> str:
    """The name of a stage of the recipe that trains; by default the last.

    Raises:
      UserError: the recipe has no stage of this name, or it makes data.
    """
    if name is None:
        return list(recipe.training)[-1]
    if name not in recipe.stages:
        miss = near_miss(name, recipe.stages)
        raise UserError(f"stage {name}: the recipe has no such stage; {miss}")
    if name not in recipe.training:
        miss = near_miss(name, recipe.training)
        raise UserError(f"stage {name}: it makes data and trains no model; {miss}")
    return name
