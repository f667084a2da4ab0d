"""Values of a raw record, checked: numbers, labels, texts and turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import UserError, nearest
from ..shown import listed, shown, shown_json
from .turns import Turn, encodable, is_turns, read_turns

CHATS = ("messages", "conversations")
"""Columns that hold a whole chat."""
COLUMNS = (
    *("prompt", "chosen", "rejected", "responses", "completion", "label", "text"),
    *CHATS,
)
"""Columns that say what kind of record it is."""

Raw = Mapping[str, Any]
"""A record as its file has it: {column: value}."""
Roles = Mapping[str, str]
"""Names of roles in a file, each with the role that it means."""
NO_ROLES: Roles = {}
Field = str | list[Turn]
"""A text, or the turns of a chat."""


class Cell(str):
    """A cell of a .csv file: a text, read as a number where a number is wanted."""

    def number(self) -> float | str:
        """The number; the text if it is none."""
        try:
            return self if "_" in self else float(self)
        except ValueError:
            return self


def value(raw: Raw, name: str, where: str) -> Any:
    """A column of a record.

    Raises:
      UserError: the record has no such column; names the columns and a near miss.
    """
    if name not in raw:
        others = [k for k in raw if k not in (*COLUMNS, name)]
        near = nearest(name, others)
        hint = f"; did you mean '{near}'?" if near else ""
        raise UserError(f"{where}: no '{name}'; the columns are {listed(raw)}{hint}")
    return raw[name]


def number(raw: Raw, name: str, where: str) -> float:
    """A finite number.

    Raises:
      UserError: it is missing or of another kind.
    """
    found = value(raw, name, where)
    found = found.number() if isinstance(found, Cell) else found
    # Over 3e38 a float32 is infinite; NaN compares as false.
    if isinstance(found, bool) or not isinstance(found, int | float) or not abs(found) < 3e38:
        raise UserError(f"{where}: '{name}' is {shown(found)}; wanted a finite number")
    return float(found)


def scores(raw: Raw, count: int, where: str) -> tuple[float, ...]:
    """The column `scores`, one number for each of `count` responses.

    Raises:
      UserError: it is missing, of another length, or an entry is no finite number.
    """
    values = value(raw, "scores", where)
    if not isinstance(values, list) or len(values) != count:
        got = shown_json(values)
        raise UserError(f"{where}: 'scores' is {got}; wanted a list of {count}, one a response")
    return tuple(number({f"scores[{i}]": v}, f"scores[{i}]", where) for i, v in enumerate(values))


def field(raw: Raw, name: str, where: str, roles: Roles = NO_ROLES) -> Field:
    """A text or turns.

    Raises:
      UserError: it is missing, of another kind, or cannot be encoded.
    """
    found = value(raw, name, where)
    if isinstance(found, str):
        return encodable(found, f"{where}: '{name}'")
    if not is_turns(found):
        got = shown_json(found)
        raise UserError(
            f"{where}: '{name}' is neither text nor messages; got {got}; "
            'wanted a string or a list of {"role": ..., "content": ...}'
        )
    return read_turns(found, roles, f"{where}: '{name}'")


def fields(
    raw: Raw, name: str, least: int, wanted: str, where: str, roles: Roles = NO_ROLES
) -> dict[str, Field]:
    """The entries of a list of responses, by the name of each, `name[0]` and so on.

    Raises:
      UserError: it is missing, no list, shorter than `least`, or an entry is no text or messages.
    """
    values = value(raw, name, where)
    if not isinstance(values, list) or len(values) < least:
        got = shown_json(values)
        raise UserError(f"{where}: '{name}' is {got}; wanted a list of {wanted}")
    named = {f"{name}[{i}]": v for i, v in enumerate(values)}
    return {key: field(named, key, where, roles) for key in named}


def text(found: Field, name: str, where: str) -> str:
    """The text of a field.

    Raises:
      UserError: it holds messages.
    """
    if not isinstance(found, str):
        raise UserError(
            f"{where}: '{name}' holds messages; wanted text; call the column 'messages'"
        )
    return found


def label(found: Any, where: str) -> float:
    """1: desirable, 0: undesirable.

    Raises:
      UserError: it is neither true, false, 1 nor 0.
    """
    if isinstance(found, Cell):
        found = {"true": 1, "false": 0}.get(found.lower(), found.number())
    if found not in (0, 1):
        raise UserError(f"{where}: 'label' is {shown(found)}; wanted true, false, 1 or 0")
    return float(found)
