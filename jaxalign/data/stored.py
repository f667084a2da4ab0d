"""Tokenized data sets on disk: made once, by several processes and hosts, and shared by runs.

A data set has a folder, named by its key, with the parts of the rows in their order. A part is
written whole or not at all, its counts after it, and `parts.json` once their number is known: what
is missing after a kill is made by the next call.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..core.layouts import Layout
from ..digests import own_suffix
from ..errors import RunError, UserError, writing
from ..sealed import read_own, sealed
from ..settings import Data
from .borrow import borrowed_parts, with_cut
from .cut import Limits
from .encode import Encoder
from .examples import RowCounts
from .fields import Raw
from .keys import data_key
from .sources import raw_records
from .store import Examples, Part
from .tokenize import Job, Rows, checked, in_parts, tokenize_part
from .workers import in_processes

MOST_PROCESSES = 16
"""More processes than this wait for the one that reads the rows."""


AGAIN = "delete the folder to make them again"


class Index(NamedTuple):
    """The content of `parts.json`."""

    parts: int


class Store(NamedTuple):
    """Where tokenized data sets are kept, and who makes them."""

    folder: Path
    """A folder that all hosts share."""
    host: int = 0
    """The number of this host; the parts of a data set are shared out over the hosts."""
    hosts: int = 1
    """Number of hosts."""
    wait: Callable[[str], object] = lambda what: None
    """Waits until all hosts have called it with the same argument."""
    processes: int = min(os.cpu_count() or 1, MOST_PROCESSES)
    """Processes of this host that tokenize."""
    said: Callable[[str, int, int], object] = lambda path, before, rows: None
    """Called with (data set, rows tokenized at the last call, rows tokenized by now)."""


def stored_examples(
    settings: Data,
    path: str,
    split: str,
    encoder: Encoder,
    layout: Layout,
    store: Store,
    *,
    seed: int,
    columns: Collection[str] = (),
) -> Examples:
    """The examples of `load_examples`, from disk; made if they are not there yet.

    Args:
      settings: limits and what to do at them; `path` and `split` are given apart.
      path: the argument of `raw_records`.
      split: the split to read, where the path is no file.
      encoder: the tokenizer and its chat template.
      layout: the responses of an example.
      store: the folder of tokenized data sets, and this host.
      seed: the seed of the partners of a layout that borrows responses; others ignore it.
      columns: what the objective reads besides responses.

    Raises:
      UserError: the data, the limits and the tokenizer do not fit together; says how.
      RunError: the folder is damaged, or the hosts do not share it.
    """

    def key() -> str:
        return data_key(settings, path, split, encoder, layout, columns, store.folder)

    if store.host == 0:
        key()
    # The first host has kept the digests of the files, so that the others need not read them.
    store.wait(f"digests of {path}")
    folder = store.folder / key()[:32]
    if not _is_whole(folder):
        job = Job(settings, Limits.of(settings), encoder, layout, tuple(columns))
        _make(job, raw_records(path, split, max_line=settings.max_line), path, folder, store)
    store.wait(f"tokenized {path}")
    found = _opened(folder, path)
    if not layout.borrowed:
        return found
    with_borrowed = folder.with_name(f"{folder.name}-{seed}")
    if store.host == 0 and not _is_whole(with_borrowed):
        _borrow(found, layout, settings.max_length, seed, path, with_borrowed)
    store.wait(f"borrowed {path}")
    return _opened(with_borrowed, path)


def _make(
    job: Job, rows: Iterable[tuple[str, Raw]], where: str, folder: Path, store: Store
) -> None:
    """Tokenize the parts that are this host's and not there yet."""
    _make_folder(folder)
    count = 0

    def tasks() -> Iterator[tuple[int, Rows]]:
        nonlocal count
        for number, part in enumerate(in_parts(rows, job.settings.limit)):
            count = number + 1
            if number % store.hosts == store.host and not _counts(folder, number).exists():
                yield number, part

    waiting = tasks()
    first = list(itertools.islice(waiting, 2))
    processes = store.processes if len(first) == 2 else 1
    tasks_left = itertools.chain(first, waiting)
    done = 0
    for rows_made in in_processes(_make_part, (job, folder), tasks_left, processes):
        store.said(where, done, done + rows_made)
        done += rows_made
    if store.host == 0:
        _finish(folder, count)


def _make_folder(folder: Path) -> None:
    """Make the folder of a data set.

    Raises:
      UserError: the folder of tokenized data sets is a file, or not writable.
      RunError: it cannot be made.
    """
    try:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
    except RunError as error:
        if isinstance(error.__cause__, PermissionError | FileExistsError | NotADirectoryError):
            raise UserError(f"run.token_store: {error}") from error
        raise


def _make_part(shared: tuple[Job, Path], task: tuple[int, Rows]) -> int:
    """Write a part; its counts come last and say that it is whole. Returns the number of rows."""
    (job, folder), (number, rows) = shared, task
    part, counts = tokenize_part(job, rows)
    if part:
        part.save(_part(folder, number))
    _write(_counts(folder, number), dataclasses.asdict(counts))
    return len(rows)


def _borrow(
    own: Examples, layout: Layout, max_length: int, seed: int, where: str, folder: Path
) -> None:
    """Write the data set with borrowed responses; its first part has the counts."""
    _make_folder(folder)
    total = number = 0
    for number, (part, cut) in enumerate(borrowed_parts(own, max_length, seed, where)):
        total += cut
        part.save(_part(folder, number))
        if number:
            _write(_counts(folder, number), dataclasses.asdict(RowCounts(0, {}, 0, {})))
    _write(_counts(folder, 0), dataclasses.asdict(with_cut(own.counts, layout, total)))
    _finish(folder, number + 1)


def _finish(folder: Path, count: int) -> None:
    _write(folder / "parts.json", Index(count)._asdict())


def _write(file: Path, value: Mapping[str, Any]) -> None:
    partial = file.with_suffix(f".{own_suffix()}.tmp")
    with writing(file):
        partial.write_text(sealed(value), encoding="utf-8")
        partial.replace(file)


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:06d}"


def _counts(folder: Path, number: int) -> Path:
    return folder / f"counts-{number:06d}.json"


def _numbers(folder: Path) -> range:
    return range(read_own(folder / "parts.json", Index, AGAIN).parts)


def _is_whole(folder: Path) -> bool:
    index = folder / "parts.json"
    return index.exists() and all(_counts(folder, i).exists() for i in _numbers(folder))


def _opened(folder: Path, where: str) -> Examples:
    """The data set of a folder.

    Raises:
      UserError: no example is left of it, or its rows do not fit together.
      RunError: a part is missing or damaged.
    """
    try:
        numbers = _numbers(folder)
        counts = [RowCounts(**read_own(_counts(folder, i), dict[str, Any], AGAIN)) for i in numbers]
        folders = [_part(folder, i) for i in numbers]
        parts = tuple(Part.open(part) for part in folders if part.exists())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{folder}: the tokens of {where} are damaged or not on storage that all hosts share "
            f"({error}); delete this folder to make them again"
        ) from error
    total = RowCounts.merged(counts)
    if sum(map(len, parts)) != total.kept:
        raise RunError(f"{folder}: a part of the tokens of {where} is missing; {AGAIN}")
    return checked(parts, total, where)
