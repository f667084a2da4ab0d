"""Values of a raw record, checked: numbers, labels, texts and messages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import UserError, near_miss

COLUMNS = ("prompt", "chosen", "rejected", "responses", "completion", "label", "text")
"""Columns that say what kind of record it is."""

Raw = Mapping[str, Any]
"""A record as its file has it: {column: value}."""
Field = str | list[dict[str, str]]
"""A text, or the messages {role, content} of a chat."""


def value(raw: Raw, name: str, where: str) -> Any:
    """A column of a record.

    Raises:
      UserError: the record has no such column; names the columns and a near miss.
    """
    if name not in raw:
        others = [k for k in raw if k not in (*COLUMNS, name)]
        hint = near_miss(name, others) if others else ""
        hint = f"; {hint}" if hint.startswith("did you mean") else ""
        raise UserError(f"{where}: no '{name}'; the columns are {listed(raw)}{hint}")
    return raw[name]


def number(raw: Raw, name: str, where: str) -> float:
    """A finite number.

    Raises:
      UserError: it is missing or of another kind.
    """
    found = value(raw, name, where)
    # Over 3e38 a float32 is infinite; NaN compares as false.
    if isinstance(found, bool) or not isinstance(found, int | float) or not abs(found) < 3e38:
        raise UserError(f"{where}: '{name}' is {str(found)[:40]!r}; wanted a finite number")
    return float(found)


def scores(raw: Raw, count: int, where: str) -> tuple[float, ...]:
    """The column `scores`, one number for each of `count` responses.

    Raises:
      UserError: it is missing, of another length, or an entry is no finite number.
    """
    values = value(raw, "scores", where)
    if not isinstance(values, list) or len(values) != count:
        got = json.dumps(values, default=str)[:80]
        raise UserError(f"{where}: 'scores' is {got}; wanted a list of {count}, one a response")
    return tuple(number({f"scores[{i}]": v}, f"scores[{i}]", where) for i, v in enumerate(values))


def field(raw: Raw, name: str, where: str) -> Field:
    """A text or messages.

    Raises:
      UserError: it is missing, of another kind, or cannot be encoded.
    """
    found = value(raw, name, where)
    if isinstance(found, str):
        return _encodable(found, name, where)
    if not isinstance(found, list) or not all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in found
    ):
        got = json.dumps(found, default=str)[:80]
        raise UserError(
            f"{where}: '{name}' is neither text nor messages; got {got}; "
            'wanted a string or a list of {"role": ..., "content": ...}'
        )
    for message in found:
        _encodable(message["content"], name, where)
    return found


def fields(raw: Raw, name: str, least: int, wanted: str, where: str) -> dict[str, Field]:
    """The entries of a list of responses, by the name of each, `name[0]` and so on.

    Raises:
      UserError: it is missing, no list, shorter than `least`, or an entry is no text or messages.
    """
    values = value(raw, name, where)
    if not isinstance(values, list) or len(values) < least:
        got = json.dumps(values, default=str)[:80]
        raise UserError(f"{where}: '{name}' is {got}; wanted a list of {wanted}")
    named = {f"{name}[{i}]": v for i, v in enumerate(values)}
    return {key: field(named, key, where) for key in named}


def text(found: Field, name: str, where: str) -> str:
    """The text of a field.

    Raises:
      UserError: it holds messages.
    """
    if not isinstance(found, str):
        raise UserError(f"{where}: '{name}' holds messages; wanted text; use prompt/completion")
    return found


def label(found: Any, where: str) -> float:
    """1: desirable, 0: undesirable.

    Raises:
      UserError: it is neither true, false, 1 nor 0.
    """
    if found not in (0, 1):
        raise UserError(f"{where}: 'label' is {found!r}; wanted true, false, 1 or 0")
    return float(found)


def listed(names: Iterable[str]) -> str:
    """Names in quotes, for messages."""
    return ", ".join(f"'{name}'" for name in names) or "none"


def _encodable(found: str, name: str, where: str) -> str:
    try:
        found.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: '{name}' holds half a surrogate pair at character {error.start}; repair it"
        ) from None
    return found
