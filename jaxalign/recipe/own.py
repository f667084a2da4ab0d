"""Objectives from outside the package: a Python object, or a function in a file.

A recipe names the file, `objective: {file: mine.py, name: mine}`, relative to the recipe. Reading
the recipe runs that file; it is the only code that a recipe can run.
"""

from __future__ import annotations

import functools
import hashlib
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pydantic

from ..core.objective import Objective
from ..errors import UserError, near_miss
from ..objectives import OBJECTIVES
from ..shown import shown
from .rounds import Complaints, with_goals


class Own(NamedTuple):
    """An objective from outside the package, and the file it comes from, if any."""

    objective: Objective[...]
    file: str = ""
    sha256: str = ""


def own_objectives(
    values: Mapping[str, Any], folder: Path
) -> tuple[dict[str, Any], dict[str, Own], Complaints]:
    """Find the objectives of a recipe that are not in the package.

    Args:
      values: the plain values of a recipe; the name of an objective may be an `Objective`.
      folder: the folder that the paths of files are relative to.

    Returns:
      The values, with plain names and absolute paths; the objectives by the dotted path of the
      stage or the term; complaints.
    """
    found: dict[str, Own] = {}
    complaints: Complaints = {}

    def settled(where: str, goal: Mapping[str, Any]) -> Mapping[str, Any]:
        section = goal.get("objective")
        if not isinstance(section, Mapping):
            return goal
        try:
            own = _own(section, folder)
        except UserError as e:
            complaints[f"{where}.objective"] = str(e)
            return goal
        if own is None:
            return goal
        found[where] = own
        plain = {"name": own.objective.name}
        plain |= {"file": own.file, "file_sha256": own.sha256} if own.file else {}
        return {**goal, "objective": {**section, **plain}}

    return with_goals(values, settled), found, complaints


def _own(section: Mapping[str, Any], folder: Path) -> Own | None:
    """The objective of a section if it is not in the package."""
    name, file = section.get("name"), section.get("file")
    if file is None and not isinstance(name, Objective):
        return None
    if file is not None:
        if not isinstance(file, str) or not isinstance(name, str):
            raise UserError(f"give file and name as text (got {shown(file)} and {shown(name)})")
        own = _from_file((folder / Path(file).expanduser()).absolute(), name, section)
    else:
        assert isinstance(name, Objective)
        own = Own(name)
    if own.objective is not OBJECTIVES.get(own.objective.name):
        if own.objective.name in OBJECTIVES:
            raise UserError(f"'{own.objective.name}' is a built-in objective; rename the function")
        _check_hyper(own.objective)
    return own


def _from_file(path: Path, name: str, section: Mapping[str, Any]) -> Own:
    """Run a file and take the objective `name` from it."""
    try:
        source = path.read_bytes()
    except OSError as e:
        raise UserError(
            f"{path}: {e.strerror}; give the file of the objective, relative to the recipe (it is "
            "the only code that a recipe runs)"
        ) from None
    digest = hashlib.sha256(source).hexdigest()
    recorded = section.get("file_sha256", digest)
    if recorded != digest:
        raise UserError(
            f"{path} has changed: the recipe recorded SHA-256 {recorded}, the file has {digest}; "
            "restore the file, or remove file_sha256 from the recipe to use the new one"
        )
    module = run_file(str(path), source)
    chosen = getattr(module, name, None)
    if chosen is None:
        known = [k for k, v in vars(module).items() if isinstance(v, Objective)]
        raise UserError(f"{path}: no objective '{name}'; {near_miss(name, known)}")
    if not isinstance(chosen, Objective):
        raise UserError(
            f"{path}: '{name}' is a {type(chosen).__name__}, not an objective; put "
            "@jaxalign.objective(...) above the function"
        )
    if chosen.name != name:
        raise UserError(f"{path}: '{name}' is the function '{chosen.name}'; use that name")
    return Own(chosen, str(path), digest)


@functools.cache
def run_file(path: str, source: bytes) -> types.ModuleType:
    """The module of a Python file, which runs once; equal recipes get the same objects.

    Args:
      path: the file.
      source: its bytes.

    Raises:
      UserError: it is no Python, or running it failed.
    """
    name = f"jaxalign_own_{hashlib.sha256(path.encode() + source).hexdigest()[:16]}"
    module = types.ModuleType(name)
    module.__file__ = path
    sys.modules[name] = module  # dataclasses look up the module of a class
    try:
        exec(compile(source, path, "exec"), vars(module))
    except SyntaxError as e:
        raise UserError(f"{e.filename} line {e.lineno}: not valid Python: {e.msg}") from None
    except Exception as e:
        raise UserError(f"{path}: running the file failed: {type(e).__name__}: {e}") from e
    return module


def _check_hyper(chosen: Objective[...]) -> None:
    """Refuse an objective whose hyper-parameters cannot be settings."""
    try:
        hints = typing.get_type_hints(chosen.fn, include_extras=True)
    except (NameError, TypeError) as e:
        raise UserError(f"'{chosen.name}': an annotation cannot be read: {e}") from None
    for key in chosen.hyper:
        if key in ("name", "file", "file_sha256"):
            raise UserError(f"'{chosen.name}': {key} is a setting of its own; rename it")
        try:
            pydantic.TypeAdapter(hints[key])
        except (KeyError, pydantic.errors.PydanticUserError):
            raise UserError(
                f"'{chosen.name}': annotate the hyper-parameter {key} with float, int, bool, a "
                "Literal or an Annotated of these"
            ) from None
