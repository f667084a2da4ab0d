"""A data set to tokenized examples, in parts."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..core.layouts import Layout
from ..errors import UserError
from ..settings import Data
from .cut import Limits, make_example
from .encode import Encoder
from .examples import Branch, RowCounts
from .fields import Raw
from .read import fit_records
from .sources import raw_records
from .store import Examples, Part
from .tally import Tally
from .workers import in_processes

CHUNK = 1000
"""Rows tokenized in one call, so that the tokenizer's threads have work."""
ROWS = 4096
"""Rows of a part."""

Rows = Sequence[tuple[str, Raw]]


class Store(NamedTuple):
    """A folder that keeps a tokenized data set, part by part: after a kill it goes on."""

    folder: Path
    """The folder of this data set, tokenizer and settings; others have other folders."""
    processes: int = 1
    """Processes that tokenize."""
    host: int = 0
    """The number of this host; the parts are shared out over the hosts."""
    hosts: int = 1
    """Number of hosts."""

    def part(self, number: int) -> Path:
        """The folder of a part."""
        return self.folder / f"part-{number:06d}"

    def counts(self, number: int) -> Path:
        """The file with the counts of a part, which exists when the part is whole."""
        return self.folder / f"counts-{number:06d}.json"


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
    rows = raw_records(path, split)
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
    made = [tokenize_part(job, part) for part in _in_parts(rows, settings.limit)]
    parts = tuple(part for part, _ in made if part)
    found = _checked(parts, RowCounts.merged([counts for _, counts in made]), where)
    if layout.borrowed:
        return _with_borrowed(found, settings.max_length, seed, where, layout.responses)
    return found


def store_examples(
    settings: Data,
    rows: Iterable[tuple[str, Raw]],
    encoder: Encoder,
    layout: Layout,
    store: Store,
    *,
    columns: Collection[str] = (),
) -> None:
    """Tokenize the parts of a data set that are this host's and not in the store yet.

    Arguments and errors are as for `make_examples`. `open_stored` opens the parts of all hosts.
    """
    job = Job(settings, Limits.of(settings), encoder, layout, tuple(columns))
    count = 0

    def tasks() -> Iterator[tuple[int, Rows]]:
        nonlocal count
        for number, part in enumerate(_in_parts(rows, settings.limit)):
            count = number + 1
            if number % store.hosts == store.host and not store.counts(number).exists():
                yield number, part

    for _ in in_processes(_store_part, (job, store), tasks(), store.processes):
        pass
    if store.host == 0:
        (store.folder / "parts.json").write_text(json.dumps({"parts": count}))


def open_stored(where: str, store: Store) -> Examples | None:
    """The data set of a store; None if it is not whole yet.

    Raises:
      UserError: no example is left of the data set, or its rows do not fit together.
    """
    index = store.folder / "parts.json"
    if not index.exists():
        return None
    numbers = range(json.loads(index.read_text())["parts"])
    if not all(store.counts(i).exists() for i in numbers):
        return None
    counts = [RowCounts(**json.loads(store.counts(i).read_text())) for i in numbers]
    folders = (store.part(i) for i, part in zip(numbers, counts, strict=True) if part.kept)
    return _checked(tuple(map(Part.open, folders)), RowCounts.merged(counts), where)


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
    records = iter(fit_records(job.settings, rows, job.layout, tally, job.columns))
    items = []
    while chunk := list(itertools.islice(records, CHUNK)):
        for record, sequences in job.encoder.encode(chunk, tally.noted):
            made = make_example(record, sequences, job.limits, job.encoder.bos, names, tally)
            items += [made] if made else []
    return Part.of(items) if items else None, tally.counts(len(items), names)


def _store_part(shared: tuple[Job, Store], task: tuple[int, Rows]) -> None:
    """Tokenize a part into the store; its counts come last and say that it is whole."""
    (job, store), (number, rows) = shared, task
    part, counts = tokenize_part(job, rows)
    if part:
        part.save(store.part(number))
    file = store.counts(number)
    partial = file.with_suffix(f".{number}.tmp")
    partial.write_text(json.dumps(dataclasses.asdict(counts)))
    partial.replace(file)


def _in_parts(rows: Iterable[tuple[str, Raw]], limit: int | None) -> Iterator[Rows]:
    """The rows of each part, at least one part."""
    rows = itertools.islice(rows, limit)
    yield list(itertools.islice(rows, ROWS))
    while part := list(itertools.islice(rows, ROWS)):
        yield part


def _checked(parts: tuple[Part, ...], counts: RowCounts, where: str) -> Examples:
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
    return Examples(parts, counts)


def _with_borrowed(
    own: Examples, max_length: int, seed: int, where: str, names: Sequence[str]
) -> Examples:
    """Give every example, as second response, the response to another prompt."""
    partners = _partners([item.prompt.tobytes() for item in own], seed)
    if partners is None:
        raise UserError(
            f"{where}: the mismatched responses of this objective come from other prompts, but "
            f"all {len(own)} examples have the same prompt; give data with several prompts"
        )
    items, cut = [], 0
    for item, partner in zip(own, partners, strict=True):
        borrowed = own[partner].branches[0]
        room = max_length - len(item.prompt)
        cut += room < len(borrowed.ids)
        given = Branch(borrowed.ids[:room], borrowed.scored[:room], 1)
        items.append(item._replace(branches=(*item.branches, given)))
    parts = tuple(Part.of(items[i : i + ROWS]) for i in range(0, len(items), ROWS))
    counts = own.counts
    counts = dataclasses.replace(counts, response_cut=counts.response_cut | {names[-1]: cut})
    return Examples(parts, counts)


def _partners(prompts: Sequence[bytes], seed: int) -> list[int] | None:
    """For each example the next one, around a random ring, whose prompt differs; None if none."""
    if len(set(prompts)) < 2:
        return None
    ring = np.random.default_rng(seed).permutation(len(prompts)).tolist()
    partner = list(range(len(prompts)))
    after = ring[0]
    # Backwards, so that an example with its neighbour's prompt takes its neighbour's partner; the
    # second round settles those whose search passes the ring's seam.
    for i in ring[::-1] * 2:
        partner[i] = after if prompts[after] != prompts[i] else partner[after]
        after = i
    return partner
