"""Recipes: YAML and command-line flags -> `settings.Recipe`, checked before anything runs."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro
import yaml

from ..documents import from_yaml
from ..errors import UserError
from ..objectives import OBJECTIVES
from ..settings import Recipe
from ..shown import shown
from .check import validate
from .own import own_objectives
from .renamed import refuse_renamed
from .rounds import with_goals, written_out
from .schema import schema, with_mixtures

BUILT_IN = {"quickstart": Path(__file__).parents[1] / "quickstart" / "recipe.yaml"}
"""Name of a recipe of the package -> its file."""


def read(path: str, argv: Sequence[str], *, prog: str | None = None) -> Recipe:
    """A recipe file, with flags over it, to a checked recipe.

    Args:
      path: a YAML file, or the name of a recipe in `BUILT_IN`.
      argv: flags such as `--stages.slpo.objective.alpha 0.5`; `--help` prints them all and exits.
      prog: the command that the usage line shows.

    Raises:
      UserError: the file or the value of a flag is wrong; the message lists every complaint.
      SystemExit: a flag is unknown or cannot be parsed (code 2), or `--help` was asked (code 0).
    """
    refuse_renamed(argv)
    values, own, complaints = own_objectives(
        with_mixtures(recipe_values(path)), file_of(path).parent
    )
    kind, complaints = schema(values, own, complaints)
    flagged = tyro.cli(
        kind,
        prog=prog,
        description=inspect.getdoc(Recipe),
        args=argv,
        default=validate(kind, values, lambda where: f"{path}: {where}", complaints),
        config=(tyro.conf.AvoidSubcommands,),
    )
    # Checked again: tyro converts the types of flags but ignores their ranges.
    values = dataclasses.asdict(flagged)
    return _written_out(validate(kind, values, lambda path: f"--{path.replace('_', '-')}", {}))


def parse(values: Mapping[str, Any], where: str = "recipe", *, folder: Path = Path()) -> Recipe:
    """Check the plain values of a recipe; its rounds are written out.

    Args:
      values: the values, as a YAML file holds them; the name of an objective may be an
        `Objective`.
      where: the name of the recipe in messages.
      folder: the folder that the files of objectives are relative to.

    Raises:
      UserError: a value is wrong; the message lists every complaint, each after `where`.
    """
    return _written_out(parse_written(values, where, folder=folder))


def parse_written(
    values: Mapping[str, Any], where: str = "recipe", *, folder: Path = Path()
) -> Recipe:
    """The recipe of `parse`, with rounds as they are written."""
    values, own, complaints = own_objectives(with_mixtures(values), folder)
    kind, complaints = schema(values, own, complaints)
    return _plain(validate(kind, values, lambda path: f"{where}: {path}", complaints))


def recorded(path: str) -> dict[str, Any]:
    """The values of a recipe that `dump` has written, with defaults for settings that are new.

    No code runs: an objective from outside the package keeps the values that were written.

    Raises:
      UserError: the file is damaged, or has settings that no longer exist.
    """
    values = recipe_values(path)
    # Objectives with a complaint get no section of their own.
    skipped: dict[str, str] = {}

    def look(where: str, goal: Mapping[str, Any]) -> Mapping[str, Any]:
        section = goal.get("objective")
        if isinstance(section, Mapping) and str(section.get("name")) not in OBJECTIVES:
            skipped[f"{where}.objective"] = "not checked"
        return goal

    with_goals(values, look)
    kind, complaints = schema(values, {}, skipped)
    complaints = {path: said for path, said in complaints.items() if path not in skipped}
    checked = validate(kind, values, lambda where: f"{path}: {where}", complaints)
    return resolved(_plain(checked))


def resolved(recipe: Recipe) -> dict[str, Any]:
    """Every value of the recipe, with defaults, as dicts and lists; `parse` reads them back."""
    return _listed(dataclasses.asdict(recipe))


def dump(recipe: Recipe) -> str:
    """Every value of the recipe, with defaults, as YAML; `read` reads it back."""
    return yaml.safe_dump(resolved(recipe), sort_keys=False)


def _written_out(recipe: Recipe) -> Recipe:
    """A checked recipe whose stages are in the order of the run."""
    return written_out(_plain(recipe))[0]


def _plain(recipe: Recipe) -> Recipe:
    """Convert an instance of a schema to `Recipe`, so that recipes with equal values are equal."""
    return Recipe(**{f.name: getattr(recipe, f.name) for f in dataclasses.fields(Recipe)})


def _listed(value: Any) -> Any:
    """Plain values with lists for tuples, as YAML holds them."""
    if isinstance(value, dict):
        return {k: _listed(v) for k, v in value.items()}
    return [_listed(v) for v in value] if isinstance(value, list | tuple) else value


def file_of(path: str) -> Path:
    """The file of a recipe; a file in the working folder goes before a built-in recipe."""
    return Path(path) if Path(path).is_file() else BUILT_IN.get(path, Path(path))


def is_recipe(name: str) -> bool:
    """Whether a name belongs to a recipe: a YAML file, or one of `BUILT_IN`."""
    return name in BUILT_IN or Path(name).suffix in (".yaml", ".yml")


def recipe_values(path: str) -> dict[str, Any]:
    """The plain values in the YAML file of a recipe.

    Raises:
      UserError: the file is missing or is not the YAML of a recipe.
    """
    try:
        values = from_yaml(file_of(path).read_bytes())
    except OSError as e:
        known = ", ".join(BUILT_IN)
        raise UserError(
            f"{path}: {e.strerror}; give the path of a recipe, a YAML file, or {known}"
        ) from None
    except ValueError as e:
        raise UserError(f"{path}: not valid YAML: {e}") from None
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: a recipe is a mapping of run, model and stages (got {shown(values)})"
        )
    return values
