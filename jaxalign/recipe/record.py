"""One record checked by pydantic, and its complaints in our words."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import pydantic
import typing_extensions

from ..errors import UserError, near_miss
from ..shown import shown
from .renamed import new_name
from .rounds import Complaints
from .schema import STRICT

Record = TypeVar("Record")


def validate_record(kind: type[Record], values: Mapping[str, Any], where: str) -> Record:
    """Check the values of a record by itself, outside a recipe.

    Args:
      kind: a dataclass.
      values: its values by name.
      where: the name of the record in messages.

    Raises:
      UserError: a value is wrong; the message lists every complaint.
    """
    record, complaints = checked_record(kind, values)
    if record is None:
        raise refused(complaints, lambda path: f"{where}: {path}")
    return record


def checked_record(
    kind: type[Record], values: Mapping[str, Any]
) -> tuple[Record | None, Complaints]:
    """A record, or None and the complaints about its values, each by the path of its setting.

    Args:
      kind: a dataclass.
      values: its values by name.
    """
    names = {"__doc__": kind.__doc__, "__pydantic_config__": STRICT}
    strict = dataclasses.make_dataclass(
        kind.__name__, (), bases=(kind,), frozen=True, kw_only=True, namespace=names
    )
    try:
        return pydantic.TypeAdapter(strict).validate_python(values), {}
    except pydantic.ValidationError as e:
        return None, complaints_of(kind, e)


def refused(complaints: Complaints, place: Callable[[str], str]) -> UserError:
    """The error that lists every complaint.

    Args:
      complaints: the complaints.
      place: maps the dotted path of a setting to its name in messages.
    """
    return UserError("\n".join(f"{place(path)}: {what}" for path, what in complaints.items()))


def complaints_of(schema: type, error: pydantic.ValidationError) -> Complaints:
    """The errors of pydantic in our words, one for each setting."""
    wanted: dict[str, list[str]] = {}
    got: dict[str, str] = {}
    for e in error.errors():
        path, siblings = _locate(schema, e["loc"])
        got[path] = f" (got {shown(e['input'])})"
        match e["type"]:
            case "unexpected_keyword_argument" | "extra_forbidden":
                new = new_name(path)
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
    """The dotted path of a location of pydantic, and the fields of the record that it is in."""
    path: list[str] = []
    siblings: Mapping[str, Any] = {}
    fields = _fields(schema)
    for key in location:
        if not fields:
            break  # what follows names a branch of a union
        path.append(str(key))
        if isinstance(key, int):
            continue  # the place in a list of records
        siblings = fields
        fields = _fields(fields.get(key))
    return ".".join(path), siblings


def _fields(kind: Any) -> Mapping[str, Any]:
    """The fields of a record, or of the record in `record | None` or in a list; else nothing."""
    if dataclasses.is_dataclass(kind) or typing_extensions.is_typeddict(kind):
        return typing.get_type_hints(kind)
    return next(filter(None, map(_fields, typing.get_args(kind))), {})
