"""The answers of a model to one prompt, as a row of a file has them, checked."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from ..data.fields import COLUMNS, Field, Raw, field, fields, number, value
from ..errors import UserError
from ..shown import shown, shown_json

SCORER = "scores_"
"""What the column of one scorer of several begins with."""
SINGULAR = {
    "scores": "score",
    "finishes": "finish",
    "tokens": "tokens",
    "logps": "logp",
    "sampler_logps": "behavior_logp",
    "seeds": "seed",
    "token_ids": "token_ids",
}
"""Answer columns, which have one entry per response, each with the name of one entry."""
FINISHES = ("stop", "length")
"""How an answer ends: by a stop token, or cut at the maximum number of tokens."""


class Answers(NamedTuple):
    """The R answers to one prompt."""

    where: str  # for messages
    raw: Raw  # the row without nulls
    prompt: Field
    given: Any  # the prompt in the form of its file
    texts: list[str]  # [R]
    columns: dict[str, list[Any]]  # the answer columns by name, [R] each
    further: dict[str, Any]  # the other columns, except columns that name a kind of record
    pool: list[int]  # the answers that take part

    @property
    def scores(self) -> np.ndarray:
        """The score of every answer, [R] float64."""
        return self.numbers("scores")

    @property
    def pool_scores(self) -> np.ndarray:
        """The scores of the answers that take part, float64."""
        return self.scores[self.pool]

    def numbers(self, name: str) -> np.ndarray:
        """An answer column of numbers, [R] float64."""
        return np.array(self.columns[name], np.float64)

    def scorers(self, option: str) -> np.ndarray:
        """The scores of each of several scorers, [scorers, R] float64.

        Args:
          option: the name of the option that reads them, for messages.

        Raises:
          UserError: the row has none.
        """
        found = [self.numbers(name) for name in self.columns if name.startswith(SCORER)]
        if not found:
            raise UserError(
                f"{self.where}: no column '{SCORER}NAME' with the scores of one scorer, which "
                f"pair.{option} reads; score with several scorers, or leave the option out"
            )
        return np.stack(found)


def read_answers(
    raw: Raw, where: str, *, unfinished: bool, repeats: bool, dropped: Counter[str]
) -> Answers:
    """The answers of a row, and which of them take part.

    An answer takes part if it is not empty, ended by itself, and is the first with its text.

    Args:
      raw: the row.
      where: its place, for messages.
      unfinished: whether answers that were cut take part.
      repeats: whether each of several equal answers takes part.
      dropped: counts of the answers that do not take part, by reason; increased.

    Raises:
      UserError: the row has no prompt, responses or scores, or a value is of another kind.
    """
    raw = {name: found for name, found in raw.items() if found is not None}
    prompt = field(raw, "prompt", where)
    texts = list(fields(raw, "responses", 1, "one or more texts", where).values())
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(
                f"{where}: 'responses[{i}]' holds messages; wanted the text of an answer"
            )
    value(raw, "scores", where)
    columns = {
        name: _column(raw[name], name, len(texts), where)
        for name in raw
        if name in SINGULAR or name.startswith(SCORER)
    }
    further = {k: v for k, v in raw.items() if k not in columns and k not in COLUMNS}
    cut = [not unfinished and end == "length" for end in columns.get("finishes", [""] * len(texts))]
    pool: list[int] = []
    seen: set[str] = set()
    for i, text in enumerate(map(str, texts)):
        if cut[i]:
            dropped["unfinished"] += 1
        elif not text.strip():
            dropped["empty"] += 1
        elif text in seen and not repeats:
            dropped["repeated"] += 1
        else:
            pool.append(i)
            seen.add(text)
    return Answers(where, raw, prompt, raw["prompt"], [*map(str, texts)], columns, further, pool)


def _column(found: Any, name: str, count: int, where: str) -> list[Any]:
    """An answer column: a list of numbers, or of finishes, one per response."""
    if not isinstance(found, list) or len(found) != count:
        raise UserError(
            f"{where}: '{name}' is {shown_json(found)}; wanted a list of {count}, one a response"
        )
    for i, entry in enumerate(found):
        if name == "token_ids":
            _check_ids(entry, f"{where}: 'token_ids[{i}]'")
        elif name != "finishes":
            number({f"{name}[{i}]": entry}, f"{name}[{i}]", where)
        elif entry not in FINISHES:
            raise UserError(
                f"{where}: '{name}[{i}]' is {shown(entry)}; wanted {' or '.join(FINISHES)}"
            )
    return found


def _check_ids(entry: Any, where: str) -> None:
    if not isinstance(entry, list) or any(type(x) is not int or x < 0 for x in entry):
        raise UserError(f"{where} is {shown_json(entry)}; wanted a list of token ids")
