"""The rows that scorers read, and the form of their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from ...data.fields import Field, Raw, value
from ...data.records import Record, recognize
from ...errors import UserError
from ...shown import shown_json


class Answered(NamedTuple):
    """A prompt, its answers and the row that they come from."""

    record: Record
    row: Raw  # without nulls

    @property
    def where(self) -> str:
        """The place of the row, for messages."""
        return self.record.where

    @property
    def prompt(self) -> Field:
        """The prompt, a text or turns."""
        return self.record.prompt

    @property
    def responses(self) -> tuple[Field, ...]:
        """The answers, texts or turns."""
        return self.record.responses

    @property
    def texts(self) -> list[str]:
        """The answers as texts."""
        return [text_of(response) for response in self.responses]

    def of_answers(self, name: str) -> list[Any]:
        """An answer column, one entry for each answer.

        Raises:
          UserError: it is missing, no list, or of another length.
        """
        found = value(self.row, name, self.where)
        if not isinstance(found, list) or len(found) != len(self.responses):
            raise UserError(
                f"{self.where}: '{name}' is {shown_json(found)}; wanted a list of "
                f"{len(self.responses)}, one a response"
            )
        return found


class Scored(NamedTuple):
    """The scores of some rows."""

    values: list[list[float]]
    """One list for each row, one score for each of its answers."""
    columns: Mapping[str, list[list[Any]]] = {}
    """Further answer columns by name, in the same form."""


class Scorer(Protocol):
    """A scorer, ready to score."""

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """What the scores depend on, next to the rows; plain values for JSON."""
        ...

    def score(self, rows: Sequence[Answered]) -> Scored:
        """Score the answers of every row.

        Raises:
          UserError: a row does not fit the scorer.
          RunError: the scorer failed.
        """
        ...

    def report(self) -> dict[str, float]:
        """Numbers about the scoring so far, by name."""
        ...


def answered(row: Raw, where: str) -> Answered:
    """A row of a file, recognized by its columns.

    Args:
      row: prompt and responses, a pair, a completion or a chat.
      where: its place, for messages.

    Raises:
      UserError: it has no answers, or a column is of the wrong kind.
    """
    raw = {k: v for k, v in row.items() if v is not None}
    alone = raw.get("responses")
    if isinstance(alone, list) and len(alone) == 1 and not {"chosen", "rejected"} & set(raw):
        others = {k: v for k, v in raw.items() if k != "responses"}
        record = recognize(others | {"completion": alone[0]}, where)
        record = record and record._replace(names=("responses[0]",))
    else:
        record = recognize(raw, where)
    if record is None:
        raise UserError(f"{where}: its responses answer different prompts; drop the row")
    return Answered(record, raw)


def text_of(found: Field) -> str:
    """A text, or the contents of turns; turns of several roles each after its role."""
    if isinstance(found, str):
        return found
    if len({turn["role"] for turn in found}) < 2:
        return "\n\n".join(turn["content"] or "" for turn in found)
    return "\n\n".join(f"{turn['role']}: {turn['content'] or ''}" for turn in found)
