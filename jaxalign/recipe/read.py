"""Recipes: YAML and command-line flags -> `settings.Recipe`, checked before anything runs."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro
import yaml

from ..errors import UserError
from ..settings import Recipe
from .check import validate
from .renamed import refuse_renamed
from .schema import schema

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
    values = _load(path)
    kind, complaints = schema(values)
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
    return _plain(validate(kind, values, lambda path: f"--{path.replace('_', '-')}", {}))


def parse(values: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """The plain values of a recipe, as its YAML holds them, to a checked recipe.

    Raises:
      UserError: a value is wrong; the message lists every complaint, each after `where`.
    """
    kind, complaints = schema(values)
    return _plain(validate(kind, values, lambda path: f"{where}: {path}", complaints))


def resolved(recipe: Recipe) -> dict[str, Any]:
    """Every value of the recipe, defaults too, as plain dicts; `parse` of it gives an equal one."""
    return dataclasses.asdict(recipe)


def dump(recipe: Recipe) -> str:
    """Every value of the recipe, defaults too, as YAML; `read` of it gives an equal one."""
    return yaml.safe_dump(resolved(recipe), sort_keys=False)


def _plain(recipe: Recipe) -> Recipe:
    """The same values as a `Recipe` proper, so that recipes of the same values are equal."""
    return Recipe(**{f.name: getattr(recipe, f.name) for f in dataclasses.fields(Recipe)})


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


def _file(path: str) -> Path:
    """The file of a recipe; a file of the user goes before a built-in recipe of its name."""
    return Path(path) if Path(path).is_file() else BUILT_IN.get(path, Path(path))


def _load(path: str) -> dict[str, Any]:
    try:
        values = yaml.load(_file(path).read_bytes(), _Loader)
    except OSError as e:
        known = ", ".join(BUILT_IN)
        raise UserError(
            f"{path}: {e.strerror}; give the path of a recipe, a YAML file, or {known}"
        ) from None
    except yaml.MarkedYAMLError as e:
        line = f" line {e.problem_mark.line + 1}" if e.problem_mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {e.problem}") from None
    except yaml.YAMLError as e:
        raise UserError(f"{path}: not valid YAML: {e}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is a mapping of run, model and stages (got {values!r})")
    return values
