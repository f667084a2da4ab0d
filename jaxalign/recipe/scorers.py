"""The scorers of a recipe: plain values to checked settings."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ..errors import near_miss
from ..settings.score import KINDS, Function, Judge, Length, Regex, Scorer
from ..shown import shown
from .record import checked_record, refused
from .rounds import Complaints


def read_scorers(by: Any, where: str = "by") -> tuple[Scorer, ...]:
    """The settings of one or more scorers.

    A scorer is a mapping with its kind as the only key, `{numeric: {answer: gold}}`. The kind alone
    has all defaults; a value that is no mapping is the first option of the kind, as in
    `{reward_model: FOLDER}`.

    Args:
      by: a scorer or a list of scorers, plain values.
      where: the dotted path of `by`, for messages.

    Returns:
      The settings, whose names are distinct: a scorer without one has its kind as the name.

    Raises:
      UserError: a kind or an option is unknown or wrong; the message lists every complaint.
    """
    found, complaints = scorers_of(by, where)
    if complaints:
        raise refused(complaints, lambda path: path)
    return found


def scorers_of(by: Any, where: str) -> tuple[tuple[Scorer, ...], Complaints]:
    """The settings of the scorers that are right, and the complaints about the others.

    Args:
      by: a scorer or a list of scorers, plain values, as for `read_scorers`.
      where: the dotted path of `by`.
    """
    many = isinstance(by, list | tuple)
    if many and not by:
        return (), {where: "give at least one scorer, such as numeric (got [])"}
    found: list[Scorer] = []
    complaints: Complaints = {}
    for i, one in enumerate(by if many else [by]):
        record, wrong = _read(one, f"{where}.{i}" if many else where)
        complaints |= wrong
        if record is not None:
            found.append(record)
    names = Counter(name_of(record) for record in found)
    repeated = [f"{n} scorers have the name '{name}'" for name, n in names.items() if n > 1]
    if repeated:
        complaints[where] = f"{', and '.join(repeated)}; give each its own name"
    return tuple(found), complaints


def kind_of(record: Scorer) -> str:
    """The kind of a scorer, as in a recipe."""
    return next(kind for kind, made in KINDS.items() if type(record) is made)


def name_of(record: Scorer) -> str:
    """The name of a scorer, by default its kind."""
    return record.name or kind_of(record)


def _read(one: Any, where: str) -> tuple[Scorer | None, Complaints]:
    """One scorer, or None where its values are no scorer, and the complaints about it."""
    one = {one: {}} if isinstance(one, str) else one
    if not isinstance(one, Mapping) or len(one) != 1:
        said = (
            "wanted a mapping with the kind of a scorer as its only key, such as "
            f"{{numeric: {{answer: answer}}}} (got {shown(one)})"
        )
        return None, {where: said}
    (kind, options), *_ = one.items()
    if kind not in KINDS:
        return None, {where: f"no scorer {shown(kind)}; {near_miss(str(kind), KINDS)}"}
    made = KINDS[kind]
    if not isinstance(options, Mapping):
        own = [f.name for f in dataclasses.fields(made) if f.name in made.__annotations__]
        options = {} if options is None else {own[0]: options}
    types = {f.name: f.type for f in dataclasses.fields(made)}
    wrong = {
        key: f"Input should be a number (got {value})"
        for key, value in options.items()
        if isinstance(value, bool) and types.get(key, "bool") != "bool"
    }
    checked, complaints = checked_record(made, options)
    record = None if checked is None else _plain(made, checked)
    wrong |= complaints if record is None else _misfits(record)
    return record, {f"{where}.{kind}.{key}": said for key, said in wrong.items()}


def _plain(made: type[Scorer], record: Any) -> Scorer:
    """The record as an instance of its kind, not of the class that checks it."""
    return made(**{f.name: getattr(record, f.name) for f in dataclasses.fields(made)})


def _misfits(record: Scorer) -> dict[str, str]:
    """Complaints about options that are valid by themselves."""
    found: dict[str, str] = {}
    if record.name is not None and not re.fullmatch(r"\w+", record.name):
        found["name"] = f"wanted letters, digits and underscores (got {shown(record.name)})"
    if isinstance(record, Length) and record.limit is None and record.target:
        found["limit"] = f"missing; next to target, give the length with score 0 (got {None})"
    if isinstance(record, Regex):
        try:
            groups = re.compile(record.pattern).groups
            if record.captured and not groups:
                found["captured"] = "the pattern has no group to capture; put one in parentheses"
        except re.error as error:
            found["pattern"] = f"no regular expression: {error} (got {shown(record.pattern)})"
    if isinstance(record, Judge) and record.mode == "rating" and record.against is not None:
        found["against"] = f"a rating compares nothing; leave it out (got {record.against!r})"
    if isinstance(record, Function) and record.name is None:
        found["name"] = "missing; give the name of the function"
    return found
