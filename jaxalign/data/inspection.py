"""What a data set becomes, as records of plain values."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from .examples import RowCounts

BINS = 16
"""Bins of a histogram."""


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the first row."""

    name: str
    """Its name in the file."""
    kind: str
    """The kind of its value, in words."""
    read_as: str | None
    """The column that it is read as; None: it is ignored."""


@dataclasses.dataclass(frozen=True)
class Source:
    """One of the data sets that an epoch mixes, or the only one."""

    path: str
    columns: tuple[Column, ...]
    """The columns of its first row."""
    counts: RowCounts
    """What became of its rows."""
    epoch: int
    """Examples that an epoch has of it."""


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Quantiles and a histogram of lengths, in tokens; each quantile is a length that occurs."""

    min: int
    p50: int
    p90: int
    p99: int
    max: int
    histogram: tuple[int, ...]
    """Counts of `BINS` bins of equal width, from 0 to the longest."""


@dataclasses.dataclass(frozen=True)
class Packing:
    """Tokens of the first batches in the order of training, packed and unpacked."""

    batch_size: int
    batches: int
    """Batches counted."""
    row_length: int
    """The setting, tokens."""
    padded: int
    """Tokens through the model if each response has its own prompt and the batch one length."""
    unshared: int
    """The same without padding."""
    tokens: int
    """Tokens if the responses of an example share its prompt, without padding."""
    slots: int
    """Tokens through the model in packed rows, padding included."""
    filled: float
    """Fraction of the slots that hold a token."""
    shared: float
    """Fraction of the tokens that shared prompts save."""
    times: float
    """Padded tokens divided by slots."""


@dataclasses.dataclass(frozen=True)
class Repeats:
    """Examples with the same tokens as an earlier example, of the prompt or of everything."""

    count: int
    """Examples that repeat an earlier one."""
    distinct: int
    """Examples that repeat none."""
    first: str | None
    """The first that repeats another; None: none does."""
    of: str | None
    """The example that the first repeats."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """A piece of a response; context is seen and not scored, a stop token is scored."""

    text: str
    kind: Literal["context", "scored", "stop"]


@dataclasses.dataclass(frozen=True)
class Response:
    """A response of an example."""

    name: str
    pieces: tuple[Piece, ...]


@dataclasses.dataclass(frozen=True)
class Shown:
    """An example as text."""

    where: str
    weight: float
    columns: dict[str, float | tuple[float, ...]]
    prompt: str
    responses: tuple[Response, ...]


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What a data set becomes for one tokenizer, layout and settings."""

    layout: str
    """The kind of data."""
    sources: tuple[Source, ...]
    """The data sets; all else is about all of their examples."""
    counts: RowCounts
    """What became of the rows."""
    tokens: int
    """Tokens of all examples, shared prompts counted once."""
    scored: int
    """Scored tokens."""
    lengths: dict[str, Lengths]
    """Lengths of `prompt`, of each response by its name, of the prompt with the `longest` response,
    and of the `whole` example: the prompt once, and all responses."""
    packing: Packing
    same_example: Repeats
    """Examples with the prompt and responses of an earlier one."""
    same_prompt: Repeats
    """Examples with the prompt of an earlier one; those without a prompt are not counted,
    and a row that becomes two examples counts once."""
    stop_tokens: dict[str, int]
    """Ids of the tokens at which generation stops."""
    stopped: int
    """Responses that end with a stop token, scored."""
    not_stopped: int
    """Responses that do not, most of them cut."""
    examples: tuple[Shown, ...]
    """The first examples."""

    def to_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class RowInspection:
    """One row, and the examples that it becomes."""

    where: str
    """Its place."""
    raw: dict[str, Any]
    """The row as the file has it."""
    layout: str
    columns: tuple[Column, ...]
    counts: RowCounts | None
    """What became of it; None: it was refused."""
    refused: str | None
    """The error, if it was refused."""
    examples: tuple[Shown, ...]

    def to_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return dataclasses.asdict(self)
