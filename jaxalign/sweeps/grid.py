"""The settings that vary in a sweep, and the recipe of each of its runs."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..documents import from_yaml
from ..errors import UserError
from ..recipe.overrides import given_recipe
from ..recipe.read import resolved
from ..run.folder import compile_cache_folder
from ..run.read_data import store_folder
from ..settings import Recipe
from ..shown import distinct_ending, shown

SEED = "run.seed"
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_EXPONENT = re.compile(r"(?i)[-+]?\d+(\.\d*)?e[-+]?\d+")
_PLAIN = re.compile(r"[\w.+-]{1,32}", re.ASCII)
"""Values that are in the name of a folder as they are; any other has its number there."""
_IN_ROUNDS = re.compile(r"stages\.([^.]+)\.stages\.([\w-]+)\.(.+)")
MOST = 10_000
"""Runs of a sweep."""


@dataclasses.dataclass(frozen=True)
class Member:
    """One run of a sweep."""

    name: str
    """Its folder in the folder of the sweep."""
    values: Mapping[str, Any]
    """The settings that vary, by dotted path."""
    recipe: Recipe


def parse_vary(texts: Sequence[str]) -> dict[str, list[Any]]:
    """The values of settings that vary, as a command line gives them.

    Args:
      texts: "dotted.path=0.1,0.3" or "dotted.path=0..4", which is 0, 1, 2, 3, 4; values are YAML.

    Returns:
      {dotted path: values}.

    Raises:
      UserError: a text is of another form, or a path comes twice.
    """
    found: dict[str, list[Any]] = {}
    for text in texts:
        path, equals, listed = text.partition("=")
        if not (path and equals and listed.strip()):
            raise UserError(f"--vary: got {shown(text)}; wanted PATH=VALUE,VALUE or PATH=0..4")
        if path in found:
            raise UserError(f"--vary: {path} comes twice; give all of its values at once")
        try:
            values = from_yaml(f"[{listed}]")
        except ValueError as e:
            raise UserError(f"--vary: {path}: {shown(listed)} is no list of YAML values") from e
        found[path] = [one for value in values for one in _in_range(value)]
    return found


def _in_range(value: Any) -> Iterable[Any]:
    """The whole numbers of a range such as "0..4"; any other value alone."""
    if not isinstance(value, str):
        return [value]
    match = _RANGE.fullmatch(value)
    if match is None:
        # To YAML 5e-7 is text, for want of a point.
        return [float(value) if _EXPONENT.fullmatch(value) else value]
    low, high = map(int, match.groups())
    if not low <= high < low + MOST:
        raise UserError(f"--vary: the range {value} is empty, or longer than {MOST:,}; fix it")
    return range(low, high + 1)


def members(recipe: Recipe, vary: Mapping[str, Sequence[Any]]) -> list[Member]:
    """The runs of a sweep: one for each combination of values, the last setting varying fastest.

    Each is the recipe with its values, in a folder of its own in the recipe's `run.dir`. All keep
    compiled programs and tokens where the recipe keeps them.

    Args:
      recipe: the recipe.
      vary: {dotted path: values}.

    Raises:
      UserError: a path or a value does not fit the recipe, or two runs would be the same.
    """
    _check(vary)
    shared = {
        "run.compile_cache": compile_cache_folder(recipe.run) or "off",
        "run.token_store": str(store_folder(recipe.run)),
    }
    short = short_names(list(vary))
    made = []
    for places in itertools.product(*(range(len(values)) for values in vary.values())):
        chosen = {p: vs[i] for (p, vs), i in zip(vary.items(), places, strict=True)}
        name = ",".join(
            f"{short[path]}={_word(value, i)}"
            for (path, value), i in zip(chosen.items(), places, strict=True)
        )
        own = {"run.dir": f"{recipe.run.dir}/{name}", **shared}
        every = {full: value for p, value in chosen.items() for full in _in_rounds(recipe, p)}
        made.append(Member(name, chosen, given_recipe(recipe, {**every, **own})))
    if any(member.recipe.model.dtype != recipe.model.dtype for member in made):
        raise UserError(
            "--vary: model.dtype is the same for all runs of a sweep; give it as a flag"
        )
    folders = [member.name for member in made]
    recipes = [repr(_without_folder(member.recipe)) for member in made]
    if len({*folders}) < len(folders) or len({*recipes}) < len(recipes):
        raise UserError("--vary: two runs have the same values; give each value once")
    return made


def _check(vary: Mapping[str, Sequence[Any]]) -> None:
    """Refuse settings that the runs of a sweep have in common, and settings without a value."""
    if not vary:
        raise UserError("--vary: nothing varies; give at least one PATH=VALUE,VALUE")
    for path, values in vary.items():
        if path.partition(".")[0] in ("run", "mesh") and path != SEED:
            raise UserError(
                f"--vary: {path} is the same for all runs of a sweep; give it as a flag"
            )
        if not values:
            raise UserError(f"--vary: {path} has no value; give at least one")
    count = 1
    for values in vary.values():
        count *= len(values)
    if count > MOST:
        raise UserError(f"--vary: got {count:,} runs, wanted at most {MOST:,}; vary less")


def _in_rounds(recipe: Recipe, path: str) -> list[str]:
    """The dotted paths of a setting of a stage in rounds, one for each round; else its own."""
    match = _IN_ROUNDS.fullmatch(path)
    if match is None:
        return [path]
    rounds, stage, setting = match.groups()
    names = [n for n in recipe.stages if re.fullmatch(rf"{re.escape(rounds)}-\d+/{stage}", n)]
    return [f"stages.{name}.{setting}" for name in names] or [path]


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """The shortest endings of dotted paths that tell them apart."""
    parts = [tuple(path.split(".")) for path in paths]
    counts = map(distinct_ending, parts, itertools.repeat(parts))
    return {p: ".".join(own[-n:]) for p, own, n in zip(paths, parts, counts, strict=True)}


def _word(value: Any, place: int) -> str:
    """A value in the name of a folder."""
    text = str(value)
    return text if _PLAIN.fullmatch(text) and text.strip(".") else f"value-{place + 1}"


def _without_folder(recipe: Recipe) -> dict[str, Any]:
    values = resolved(recipe)
    return {**values, "run": {**values["run"], "dir": ""}}
