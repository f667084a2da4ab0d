"""What a data set becomes: its columns, lengths, packing, repeats and first examples."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from ..core.layouts import DEMOS, LABELED, PAIRS, RANKED, Layout
from ..errors import UserError
from ..settings import Data
from .cut import Limits
from .encode import Encoder
from .examples import Example
from .fields import Raw
from .fit import FITS
from .inspection import (
    BINS,
    Column,
    Inspection,
    Lengths,
    Packing,
    Piece,
    Repeats,
    Response,
    RowInspection,
    Shown,
    Source,
)
from .loader import LOOKED_AT, Loader
from .pack import token_counts
from .read import fit_row, renamed
from .records import recognize
from .sources import Row, raw_records
from .store import PROMPT, Examples, Part
from .tally import Tally
from .tokenize import Job, tokenize_part
from .turns import is_turns


class NoRowError(UserError):
    """A data set has no row with a number."""


class _Watched(dict[str, Any]):
    """A row that remembers which of its columns were read."""

    def __init__(self, row: Raw):
        super().__init__(row)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)


class _Sizes(NamedTuple):
    """Tokens of each of N examples."""

    prompt: np.ndarray  # [N]
    responses: np.ndarray  # [N, R]
    longest: np.ndarray  # [N]: of the prompt and the longest branch
    whole: np.ndarray  # [N]
    branches: np.ndarray  # [N]: their number


def first_row(path: str, split: str) -> Row:
    """The first row of a data set.

    Raises:
      UserError: the data set is missing, broken or empty.
    """
    row = next(iter(raw_records(path, split)), None)
    if row is None:
        raise UserError(f"{path}: it has no rows; give data with at least one")
    return row


def find_row(path: str, split: str, number: int) -> Row:
    """The row with a number, as messages have it; of several files, the first that has one.

    Raises:
      NoRowError: the data set has no such row.
      UserError: it is missing or broken.
    """
    where = "there is none"
    for where, row in raw_records(path, split):
        if where.endswith(f" {number}"):
            return where, row
    raise NoRowError(f"{path}: it has no row {number}; the last is {where}")


def find_layout(row: Raw, where: str, settings: Data) -> Layout:
    """The layout that suits the columns of a row best.

    Raises:
      UserError: the columns are unknown, or a value is of the wrong kind.
    """
    record = recognize(renamed(row, settings.columns, where), where, settings.roles)
    if record is None or record.is_pair:
        return PAIRS
    if record.is_group:
        return RANKED
    return DEMOS if record.label is None else LABELED


def find_columns(
    row: Raw, where: str, settings: Data, layout: Layout, wanted: Collection[str]
) -> tuple[Column, ...]:
    """The columns of a row, and which of them a layout and an objective read.

    Args:
      row: the row.
      where: its place, for messages.
      settings: `columns` and `roles` are read.
      layout: the responses of an example.
      wanted: what the objective reads besides responses.

    Raises:
      UserError: a column of `settings.columns` is not there.
    """
    watched = _Watched(renamed(row, settings.columns, where))
    with contextlib.suppress(UserError):  # a refused row has columns too
        list(fit_row(watched, where, settings, FITS[layout], Tally(), wanted))
    ours = {theirs: name for name, theirs in settings.columns.items()}
    hidden = {name: None for name in settings.columns if name not in ours}
    named = {name: ours.get(name, hidden.get(name, name)) for name in row}
    return tuple(
        Column(name, _kind(row[name]), read_as if read_as in watched.read else None)
        for name, read_as in named.items()
    )


def inspect_examples(
    examples: Examples,
    sources: tuple[Source, ...],
    encoder: Encoder,
    layout: Layout,
    loader: Loader,
    shown: int,
) -> Inspection:
    """Describe a tokenized data set.

    Args:
      examples: the examples of all sources.
      sources: the sources.
      encoder: the encoder that tokenized them.
      layout: their layout.
      loader: their batches in training.
      shown: number of examples to show.
    """
    sizes = _Sizes(*map(np.concatenate, zip(*map(_sizes, examples.parts), strict=True)))
    by_name: dict[str, list[np.ndarray]] = {}
    for r, values in enumerate(sizes.responses.T):
        by_name.setdefault(_name(layout, r), []).append(values)
    named = {name: np.concatenate(values) for name, values in by_name.items()}
    measured = {"prompt": sizes.prompt, **named, "longest": sizes.longest, "whole": sizes.whole}
    prompts, wholes = _keys(examples, encoder.front)
    stopped = sum(_stopped(part, encoder.stops) for part in examples.parts)
    return Inspection(
        layout=layout.kind,
        sources=sources,
        counts=examples.counts,
        tokens=int(sizes.whole.sum()),
        scored=int(examples.offsets[-1]),
        lengths={name: _lengths(values) for name, values in measured.items()},
        packing=_packing(loader, sizes),
        same_example=_repeats(examples, wholes, np.arange(len(examples))),
        same_prompt=_repeats(examples, prompts, np.flatnonzero(prompts)),
        stop_tokens=dict(encoder.stops),
        stopped=stopped,
        not_stopped=sizes.responses.size - stopped,
        examples=tuple(_shown(e, layout, encoder) for e in examples[: max(shown, 0)]),
    )


def inspect_row(
    row: Raw,
    where: str,
    settings: Data,
    encoder: Encoder,
    layout: Layout,
    wanted: Collection[str],
) -> RowInspection:
    """Describe what becomes of a row; arguments are as for `find_columns`.

    Raises:
      UserError: the limits leave no room for a response.
    """
    job = Job(settings, Limits.of(settings), encoder, layout, tuple(wanted))
    columns: tuple[Column, ...] = ()
    part = counts = refused = None
    try:
        columns = find_columns(row, where, settings, layout, wanted)
        part, counts = tokenize_part(job, [(where, row)])
    except UserError as error:
        refused = str(error)
    made = map(part.example, range(len(part))) if part else ()
    return RowInspection(
        where=where,
        raw=dict(row),
        layout=layout.kind,
        columns=columns,
        counts=counts,
        refused=refused,
        examples=tuple(_shown(e, layout, encoder) for e in made),
    )


def _kind(value: Any) -> str:
    """The kind of a value, in words."""
    if isinstance(value, list) and value and all(map(is_turns, value)):
        return f"{len(value)} messages"
    if isinstance(value, list):
        return f"list of {len(value)}" + (f": {_kind(value[0])}, ..." if value else "")
    if isinstance(value, str):
        return "text"
    names = {bool: "true or false", int: "number", float: "number", dict: "object"}
    return names.get(type(value), "null" if value is None else type(value).__name__)


def _name(layout: Layout, r: int) -> str:
    """The name of response r; further responses have the last one."""
    return layout.responses[min(r, len(layout.responses) - 1)]


def _sizes(part: Part) -> _Sizes:
    pieces, branch = np.diff(part.bounds), part.response != PROMPT
    n, starts = len(part), part.first[:-1]
    owner = np.repeat(np.arange(n), np.diff(part.first))
    responses = np.zeros((n, int(part.response.max()) + 1), np.int64)
    np.add.at(responses, (owner[branch], part.response[branch]), pieces[branch])
    prompt = pieces[starts]
    longest = prompt + np.maximum.reduceat(np.where(branch, pieces, 0), starts)
    return _Sizes(prompt, responses, longest, part.lengths, np.diff(part.first) - 1)


def _lengths(values: np.ndarray) -> Lengths:
    levels = np.quantile(values, (0, 0.5, 0.9, 0.99, 1), method="inverted_cdf")
    low, p50, p90, p99, high = map(int, levels)
    counts, _ = np.histogram(values, BINS, (0, max(high, 1)))
    return Lengths(low, p50, p90, p99, high, tuple(counts.tolist()))


def _packing(loader: Loader, sizes: _Sizes) -> Packing:
    most, looked_at = LOOKED_AT
    batches = min(loader.steps(1), most, -(-looked_at // loader.batch_size))
    alone = sizes.whole + (sizes.branches - 1) * sizes.prompt
    padded = unshared = tokens = slots = 0
    for step, batch in enumerate(loader.batches(0, batches)):
        at, counts = loader.indices(step), token_counts(batch)
        padded += int(sizes.branches[at].sum() * sizes.longest[at].max())
        unshared += int(alone[at].sum())
        tokens, slots = tokens + counts.real, slots + counts.slots
    return Packing(
        batch_size=loader.batch_size,
        batches=batches,
        row_length=loader.row_length,
        padded=padded,
        unshared=unshared,
        tokens=tokens,
        slots=slots,
        filled=tokens / slots,
        shared=1 - tokens / unshared,
        times=padded / slots,
    )


def _keys(examples: Examples, front: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """[N] numbers that tell prompts apart, and [N] that tell examples apart.

    An empty prompt is 0, and so is the prompt of a row that the row's example before has too.
    """
    prompts, wholes = np.zeros((2, len(examples)), np.int64)
    empty = {b"", np.array(front, np.int32).tobytes()}
    n = 0
    for part in examples.parts:
        tokens = part.tokens[0 : int(part.bounds[-1])]
        for i, (first, end) in enumerate(itertools.pairwise(part.first.tolist())):
            edges = part.bounds[first : end + 1]
            prompt, whole = (tokens[edges[0] : edges[k]].tobytes() for k in (1, -1))
            shape = np.diff(edges).tobytes(), part.response[first:end].tobytes()
            prompts[n] = 0 if prompt in empty else hash(prompt)
            wholes[n] = hash((whole, *shape))
            if i and prompts[n] == prompts[n - 1] and part.place(i) == part.place(i - 1):
                prompts[n] = 0
            n += 1
    return prompts, wholes


def _repeats(examples: Examples, keys: np.ndarray, among: np.ndarray) -> Repeats:
    """The examples, of those `among` them, whose key an earlier one has too."""
    _, index, inverse = np.unique(keys[among], return_index=True, return_inverse=True)
    earlier = index[inverse]
    again = np.flatnonzero(earlier != np.arange(len(among)))
    first = of = None
    if len(again):
        pair = again[0], earlier[again[0]]
        first, of = (examples[int(among[i])].where for i in pair)
    return Repeats(len(again), len(index), first, of)


def _stopped(part: Part, stops: Mapping[str, int]) -> int:
    """Responses whose last token is a scored stop token."""
    ends = np.append(part.response[1:] != part.response[:-1], True) & (part.response != PROMPT)
    last, every = part.bounds[1:][ends] - 1, slice(0, int(part.bounds[-1]))
    is_stop = np.isin(part.tokens[every][last], [*stops.values()])
    return int((is_stop & part.scored[every][last]).sum())


def _shown(example: Example, layout: Layout, encoder: Encoder) -> Shown:
    responses = tuple(
        Response(_name(layout, r), tuple(_pieces(example, r, encoder)))
        for r in range(example.responses)
    )
    prompt = _text(example.prompt, encoder)
    return Shown(example.where, example.weight, example.columns, prompt, responses)


def _pieces(example: Example, r: int, encoder: Encoder) -> list[Piece]:
    """Response r of an example, cut where context, scored tokens and stop tokens meet."""
    kinds: Sequence[Literal["context", "scored", "stop"]] = ("context", "scored", "stop")
    branches = [branch for branch in example.branches if branch.response == r]
    ids, scored = (np.concatenate(x) for x in zip(*(b[:2] for b in branches), strict=True))
    kind = np.where(scored, 1 + np.isin(ids, [*encoder.stops.values()]), 0)
    edges = [0, *(np.flatnonzero(np.diff(kind)) + 1).tolist(), len(ids)]
    return [
        Piece(_text(ids[start:stop], encoder), kinds[kind[start]])
        for start, stop in itertools.pairwise(edges)
    ]


def _text(ids: np.ndarray, encoder: Encoder) -> str:
    return str(encoder.tokenizer.decode(ids.tolist()))
