"""Scorers that compute: lengths, repetition, patterns, right answers, votes."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from ...data.fields import number, value
from ...errors import UserError
from ...settings import score
from ...shown import shown, shown_json
from .answers import Answered, Scored
from .numbers import GOLD, answer_number, whole_number_text


class Rule:
    """A scorer that is a function of one row."""

    def __init__(self, record: score.Scorer, rule: Callable[[Any, Answered], list[float]]):
        """Take the settings, and the function (settings, row) -> scores."""
        self._record, self._rule = record, rule

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """The options."""
        return dataclasses.asdict(self._record)

    def score(self, rows: Sequence[Answered]) -> Scored:
        """Score the answers of every row.

        Raises:
          UserError: a column is missing or of the wrong kind; names the row.
        """
        return Scored([self._rule(self._record, row) for row in rows])

    def report(self) -> dict[str, float]:
        """Nothing: the scores say all."""
        return {}


def length(how: score.Length, row: Answered) -> list[float]:
    """The plain length, or (limit - length) / (limit - target), within 0 and 1."""
    sizes = _sizes(how.unit, row)
    if how.limit is None:
        return [float(size) for size in sizes]
    if how.limit == how.target:
        return [float(size <= how.limit) for size in sizes]
    span = how.limit - how.target
    return [min(max((how.limit - size) / span, 0.0), 1.0) for size in sizes]


def _sizes(unit: str, row: Answered) -> list[int]:
    if unit == "characters":
        return [len(text) for text in row.texts]
    if unit == "words":
        return [len(text.split()) for text in row.texts]
    counts = row.of_answers("tokens")
    for i, count in enumerate(counts):
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise UserError(
                f"{row.where}: 'tokens[{i}]' is {shown(count)}; wanted a number of 0 up"
            )
    return counts


def repetition(how: score.Repetition, row: Answered) -> list[float]:
    """The share of repeated n-grams of each answer."""
    return [repeated(text, how.n) for text in row.texts]


def repeated(text: str, n: int) -> float:
    """1 - distinct n-grams / n-grams of the words of a text; 0 if it has fewer words."""
    words = text.split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def regex(how: score.Regex, row: Answered) -> list[float]:
    """1 or the captured number where the whole answer matches, else 0."""
    found = [re.fullmatch(how.pattern, text) for text in row.texts]
    if not how.captured:
        return [float(match is not None) for match in found]
    return [_captured(match, row.where) if match else 0.0 for match in found]


def _captured(match: re.Match[str], where: str) -> float:
    read = None if match[1] is None else whole_number_text(match[1])
    if read is None:
        raise UserError(
            f"{where}: the pattern captured {shown(match[1])}; wanted one number; let the group "
            "match numbers only"
        )
    return as_float(read, where)


def exact(how: score.Exact, row: Answered) -> list[float]:
    """1 where the answer is a text of the column, else 0."""
    gold = value(row.row, how.answer, row.where)
    texts = gold if isinstance(gold, list) else [gold]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(
            f"{row.where}: '{how.answer}' is {shown_json(gold)}; wanted a text or a list of texts; "
            "compare numbers with the scorer numeric"
        )

    def plain(text: str) -> str:
        text = text.strip() if how.strip else text
        return text.casefold() if how.ignore_case else text

    right = {plain(text) for text in texts}
    return [float(plain(text) in right) for text in row.texts]


def numeric(how: score.Numeric, row: Answered) -> list[float]:
    """1 where the number of the answer is the number of the column, else 0."""
    gold = _gold(how.answer, row)
    room = Fraction(how.tolerance) * abs(gold)
    found = [answer_number(text, how.after) for text in row.texts]
    return [float(x is not None and abs(x - gold) <= room) for x in found]


def _gold(name: str, row: Answered) -> Fraction:
    """The right number of a row."""
    given = value(row.row, name, row.where)
    if not isinstance(given, str):
        number(row.row, name, row.where)
        # A decimal of a file is the decimal that it shows, not its nearest binary fraction.
        return Fraction(str(given))
    read = whole_number_text(given)
    if read is None:
        raise UserError(
            f"{row.where}: '{name}' is {shown(given)}; wanted one number, or a solution with its "
            f"number after {GOLD}"
        )
    return read


def votes(how: score.Votes, row: Answered) -> list[float]:
    """The share of the answers with the same number; 0 for an answer without one."""
    found = [answer_number(text, how.after) for text in row.texts]
    counts = Counter(x for x in found if x is not None)
    return [counts[x] / len(found) if x is not None else 0.0 for x in found]


def as_float(read: Fraction, where: str) -> float:
    """A number as a float.

    Raises:
      UserError: it is too large.
    """
    try:
        return float(read)
    except OverflowError:
        raise UserError(f"{where}: got a number of over 1e308; wanted a smaller one") from None


RULES: dict[type[score.Scorer], Callable[[Any, Answered], list[float]]] = {
    score.Length: length,
    score.Repetition: repetition,
    score.Regex: regex,
    score.Exact: exact,
    score.Numeric: numeric,
    score.Votes: votes,
}
"""The function of each kind that computes: (settings, row) -> one score for each answer."""
