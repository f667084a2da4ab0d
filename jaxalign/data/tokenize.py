"""A data set to tokenized examples, in parts."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..core.layouts import Layout
from ..errors import UserError
from ..settings import Data
from .borrow import borrowed_parts, with_cut
from .cut import Limits, make_example
from .encode import Encoder
from .examples import Example, RowCounts
from .fields import Raw
from .read import fit_records
from .sources import raw_records
from .store import ROWS, Examples, Part
from .tally import Tally

CHUNK = 1000
"""Rows tokenized in one call, so that the tokenizer's threads have work."""
Rows = Sequence[tuple[str, Raw]]


def load_examples(
    settings: Data,
    path: str,
    split: str,
    encoder: Encoder,
    layout: Layout,
    *,
    seed: int,
    columns: Collection[str] = (),
) -> Examples:
    """`make_examples` of what `raw_records` reads."""
    rows = raw_records(path, split, streaming=settings.streaming, max_line=settings.max_line)
    return make_examples(settings, rows, path, encoder, layout, seed=seed, columns=columns)


def make_examples(
    settings: Data,
    rows: Iterable[tuple[str, Raw]],
    where: str,
    encoder: Encoder,
    layout: Layout,
    *,
    seed: int,
    columns: Collection[str] = (),
) -> Examples:
    """Tokenize the rows of a data set.

    Scored are the tokens that a sampler would emit after the prompt, up to and with the stop token.
    The prompt is the longest common prefix of the token ids of the prompt alone and of the prompt
    with every response, so no byte is lost if a token spans the boundary. If the responses have
    different prompts, the remainder of each prompt is the context of its response.

    Args:
      settings: limits and what to do at them; `path` and `split` are not read.
      rows: the rows of the data set, each with its place for messages.
      where: the name of the data set in messages.
      encoder: the tokenizer and its chat template.
      layout: the responses of an example.
      seed: the seed of the partners of a layout that borrows responses; others ignore it.
      columns: what the objective reads besides responses.

    Raises:
      UserError: the data, the limits and the tokenizer do not fit together; says how.
    """
    job = Job(settings, Limits.of(settings), encoder, layout, tuple(columns))
    made = [tokenize_part(job, part) for part in in_parts(rows, settings.limit)]
    parts = tuple(part for part, _ in made if part)
    found = checked(parts, RowCounts.merged([counts for _, counts in made]), where)
    if not layout.borrowed:
        return found
    parts, cut = zip(*borrowed_parts(found, settings.max_length, seed, where), strict=True)
    return Examples(parts, with_cut(found.counts, layout, sum(cut)))


class Job(NamedTuple):
    """What all parts of a data set have in common."""

    settings: Data
    limits: Limits
    encoder: Encoder
    layout: Layout
    columns: tuple[str, ...]


def tokenize_part(job: Job, rows: Rows) -> tuple[Part | None, RowCounts]:
    """The examples of some rows, None if none are left, and what became of the rows."""
    tally, names = Tally(), job.layout.responses
    job.encoder.all_stops()
    stops = job.encoder.stops
    records = iter(fit_records(job.settings, rows, job.layout, tally, job.columns, stops))
    items: list[Example] = []
    place, cuts = "", tally.cuts
    while chunk := list(itertools.islice(records, CHUNK)):
        for record, sequences in job.encoder.encode(chunk, tally.noted):
            if record.where != place:
                place, cuts = record.where, tally.cuts
            made = make_example(record, sequences, job.limits, job.encoder.front, names, tally)
            if made and items and _is_pair_of_equals(items[-1], made):
                items.pop()
                tally.cuts = cuts
                tally.dropped.add("identical responses", place)
            elif made:
                items.append(made)
    return Part.of(items) if items else None, tally.counts(len(items), names)


def _is_pair_of_equals(first: Example, second: Example) -> bool:
    """Whether two examples are the responses of one row, and equal, maybe after a cut."""
    return (
        first.where == second.where
        and np.array_equal(first.prompt, second.prompt)
        and len(first.branches) == len(second.branches)
        and all(
            np.array_equal(a.ids, b.ids)
            for a, b in zip(first.branches, second.branches, strict=True)
        )
    )


def in_parts(rows: Iterable[tuple[str, Raw]], limit: int | None) -> Iterator[Rows]:
    """The rows of each part, at least one part."""
    rows = itertools.islice(rows, limit)
    yield list(itertools.islice(rows, ROWS))
    while part := list(itertools.islice(rows, ROWS)):
        yield part


def checked(parts: tuple[Part, ...], counts: RowCounts, where: str) -> Examples:
    """The parts as a data set, at least one example, all with the same number of responses."""
    if not parts:
        reasons = ", ".join(f"{n} dropped: {reason}" for reason, n in counts.dropped.items())
        raise UserError(f"{where}: no example is left; {reasons or 'it has no rows'}")
    first, *others = (int(part.response.max()) + 1 for part in parts)
    for part, responses in zip(parts[1:], others, strict=True):
        if responses != first:
            raise UserError(
                f"{part.place(0)}: has {responses} responses; the rows before have {first}; a data "
                "set has the same number in every row"
            )
    labels = {float(x) for part in parts for x in np.unique(part.columns.get("label", ()))}
    if len(labels) == 1:
        noted = {f"all labels are {labels.pop():g}": counts.kept}
        counts = dataclasses.replace(counts, noted=counts.noted | noted)
    return Examples(parts, counts)
