"""A tokenized data set: flat arrays in parts, in memory or on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from ..digests import own_suffix
from ..errors import RunError, writing
from ..sealed import read_own, sealed
from .disk import OnDisk, npy_array
from .examples import Branch, Example, RowCounts

ROWS = 4096
"""Rows of a part."""
PROMPT = -1
"""The number of a prompt among the responses of its example."""
READ_WHOLE = (
    "bounds",
    "response",
    "first",
    "weight",
    "scored_counts",
    "place_bounds",
    "checksums",
)
"""Arrays of a part that are read when it is opened."""
READ_IN_SLICES = ("tokens", "scored", "places")
"""Its other arrays, apart from columns."""


class Summary(NamedTuple):
    """What is asked of all tokens of a part, computed once."""

    longest: int  # the most tokens of a prompt and one of its branches
    largest_token: int
    last_tokens: list[int]  # the tokens that a branch ends with
    digest: str  # SHA-256 of everything but the places


class About(NamedTuple):
    """The content of a part's `part.json`."""

    columns: list[str]
    summary: Summary
    checksums: dict[str, int]
    """CRC-32 of each array that is read whole, by the name of its file."""


@dataclasses.dataclass(frozen=True)
class Part:
    """Consecutive examples. A piece is a prompt or a branch; an example's prompt comes first."""

    tokens: np.ndarray | OnDisk
    """[tokens] int32, piece after piece."""
    scored: np.ndarray | OnDisk
    """[tokens] bool."""
    bounds: np.ndarray
    """[pieces + 1] int64: where the tokens of each piece begin."""
    response: np.ndarray
    """[pieces] int32: the response that a branch belongs to; `PROMPT` for a prompt."""
    first: np.ndarray
    """[examples + 1] int64: the first piece of each example."""
    weight: np.ndarray
    """[examples] float32: weight of the loss of each example."""
    scored_counts: np.ndarray
    """[examples * R] int64: scored tokens of each response."""
    columns: dict[str, np.ndarray]
    """{name: [examples] or [examples, R] float64}."""
    places: np.ndarray | OnDisk
    """[bytes] uint8: where each example comes from, for messages, in UTF-8."""
    place_bounds: np.ndarray
    """[examples + 1] int64: where the place of each example begins in `places`."""
    checksums: np.ndarray
    """[examples] uint32: CRC-32 of the tokens and the place of each example."""
    summary: Summary

    @classmethod
    def of(cls, items: Sequence[Example]) -> Part:
        """The arrays of some examples, at least one."""
        pieces = [piece for item in items for piece in _pieces(item)]
        ids, scored, response = zip(*pieces, strict=True)
        arrays = {
            "tokens": np.concatenate(ids),
            "scored": np.concatenate(scored),
            "bounds": _edges([len(x) for x in ids]),
            "response": np.array(response, np.int32),
            "first": _edges([1 + len(item.branches) for item in items]),
            "weight": np.array([item.weight for item in items], np.float32),
        }
        columns = {k: np.array([item.columns[k] for item in items]) for k in items[0].columns}
        places = [item.where.encode() for item in items]
        edges = arrays["bounds"][arrays["first"]]
        held = [slice(*edges[i : i + 2]) for i in range(len(items))]
        checksums = [
            _checksum(arrays["tokens"][at], arrays["scored"][at], place)
            for at, place in zip(held, places, strict=True)
        ]
        return cls(
            **arrays,
            scored_counts=_scored_counts(**arrays),
            columns=columns,
            places=np.frombuffer(b"".join(places), np.uint8),
            place_bounds=_edges([len(place) for place in places]),
            checksums=np.array(checksums, np.uint32),
            summary=_summary(arrays | columns),
        )

    @classmethod
    def open(cls, folder: Path) -> Part:
        """A part that `save` wrote.

        Raises:
          RunError: its part.json is damaged.
          OSError: a file cannot be read.
          ValueError: an array is damaged.
        """
        about = read_own(folder / "part.json", About, f"delete {folder.parent}")

        def whole(name: str) -> np.ndarray:
            array = npy_array(folder / f"{name}.npy")
            if _crc(array) != about.checksums.get(name):
                raise ValueError(f"{folder.name}/{name}.npy: its checksum differs")
            return array

        return cls(
            tokens=OnDisk.npy(folder / "tokens.npy"),
            scored=OnDisk.npy(folder / "scored.npy"),
            **{name: whole(name) for name in READ_WHOLE},
            columns={name: whole(f"column-{i}") for i, name in enumerate(about.columns)},
            places=OnDisk.npy(folder / "places.npy"),
            summary=about.summary,
        )

    def save(self, folder: Path) -> None:
        """Write the part, whole or not at all; a part that is there already is kept.

        Raises:
          RunError: it cannot be written.
        """
        partial = folder.with_name(f".{folder.name}.{own_suffix()}")
        try:
            with writing(folder):
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
                self._fill(partial)
                _settle(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _fill(self, folder: Path) -> None:
        names = (*READ_IN_SLICES, *READ_WHOLE)
        arrays: dict[str, Any] = {name: getattr(self, name) for name in names}
        arrays |= {f"column-{i}": x for i, x in enumerate(self.columns.values())}
        for name, array in arrays.items():
            with (folder / f"{name}.npy").open("wb") as file:
                np.save(file, array, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
        about = {
            "columns": list(self.columns),
            "summary": self.summary._asdict(),
            "checksums": {k: _crc(x) for k, x in arrays.items() if k not in READ_IN_SLICES},
        }
        (folder / "part.json").write_text(sealed(about), encoding="utf-8")

    def __len__(self) -> int:
        return len(self.first) - 1

    def example(self, i: int) -> Example:
        """Example i.

        Raises:
          RunError: its tokens on disk are damaged.
        """
        first, end = self.first[i], self.first[i + 1]
        start = self.bounds[first]
        held = slice(start, self.bounds[end])
        tokens, scored = self.tokens[held], self.scored[held]
        where = self._place(i)
        if _checksum(tokens, scored, where) != self.checksums[i]:
            folder = self.tokens.path.parent.parent if isinstance(self.tokens, OnDisk) else "memory"
            raise RunError(
                f"{folder}: the tokens of {where.decode(errors='replace')} are damaged; delete "
                "this folder to make them again"
            )
        pieces = [slice(*(self.bounds[k : k + 2] - start)) for k in range(first, end)]
        branches = tuple(
            Branch(tokens[at], scored[at], int(r))
            for at, r in zip(pieces[1:], self.response[first + 1 : end], strict=True)
        )
        weight = float(self.weight[i])
        return Example(tokens[pieces[0]], branches, self.columns_of(i), where.decode(), weight)

    def item(self, i: int) -> Held:
        """Example i, its tokens left where they are."""
        responses = len(self.scored_counts) // len(self)
        first, end = self.bounds[self.first[i : i + 2]]
        return Held(
            self,
            i,
            length=int(end - first),
            prompt_length=int(self.bounds[self.first[i] + 1] - first),
            scored_counts=self.scored_counts[i * responses : (i + 1) * responses].tolist(),
        )

    def columns_of(self, i: int) -> dict[str, float | tuple[float, ...]]:
        """The columns of example i."""
        columns = {k: x[i].tolist() for k, x in self.columns.items()}
        return {k: tuple(v) if isinstance(v, list) else v for k, v in columns.items()}

    def place(self, i: int) -> str:
        """Where example i comes from."""
        return self._place(i).decode(errors="replace")

    def _place(self, i: int) -> bytes:
        return self.places[slice(*self.place_bounds[i : i + 2])].tobytes()

    @cached_property
    def lengths(self) -> np.ndarray:
        """[examples] int64: tokens of the prompt and all branches."""
        return np.diff(self.bounds[self.first])


class Held(NamedTuple):
    """An example of a part."""

    part: Part
    number: int
    length: int
    prompt_length: int
    scored_counts: list[int]

    @property
    def weight(self) -> float:
        """The weight of its loss."""
        return float(self.part.weight[self.number])

    @property
    def columns(self) -> dict[str, float | tuple[float, ...]]:
        """What the objective reads besides responses."""
        return self.part.columns_of(self.number)

    def read(self) -> Example:
        """The example, from disk if its tokens are there."""
        return self.part.example(self.number)


@dataclasses.dataclass(frozen=True)
class Examples(Sequence[Example]):
    """A tokenized data set, in the order of its rows."""

    parts: tuple[Part, ...]
    counts: RowCounts

    @classmethod
    def of(cls, items: Sequence[Example], counts: RowCounts | None = None) -> Examples:
        """A data set of one part, at least one example."""
        return cls((Part.of(items),), counts or RowCounts(len(items), {}, 0, {}))

    @cached_property
    def _starts(self) -> np.ndarray:
        """[parts + 1] the first example of each part."""
        return _edges([len(part) for part in self.parts])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.item(index).read()

    def item(self, index: int) -> Held:
        """An example, its tokens left where they are."""
        at = range(len(self))[index]
        p = int(np.searchsorted(self._starts, at, side="right")) - 1
        return self.parts[p].item(at - int(self._starts[p]))

    def __iter__(self) -> Iterator[Example]:
        for part in self.parts:
            yield from map(part.example, range(len(part)))

    @cached_property
    def responses(self) -> int:
        """R, responses per example, the same for all."""
        return 1 + int(self.parts[0].response.max())

    @cached_property
    def branches(self) -> int:
        """The most branches of an example."""
        return max(int(np.diff(part.first).max()) for part in self.parts) - 1

    @property
    def longest(self) -> int:
        """The most tokens of a prompt and one of its branches."""
        return max(part.summary.longest for part in self.parts)

    @property
    def largest_token(self) -> int:
        """The largest token id."""
        return max(part.summary.largest_token for part in self.parts)

    @property
    def last_tokens(self) -> set[int]:
        """The tokens that a branch ends with."""
        return set().union(*(part.summary.last_tokens for part in self.parts))

    @cached_property
    def offsets(self) -> np.ndarray:
        """[N * R + 1] int64: where the scored tokens of response r of example i begin.

        Entry i * R + r; the last entry is the number of scored tokens of the data set.
        """
        return _edges(np.concatenate([part.scored_counts for part in self.parts]))

    @cached_property
    def max_scored(self) -> int:
        """T, the most scored tokens of a response, rounded up to a multiple of 16."""
        return -(-int(np.diff(self.offsets).max()) // 16) * 16

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all token ids, lengths, scored tokens, weights and columns."""
        parts = "".join(part.summary.digest for part in self.parts)
        return hashlib.sha256(parts.encode()).hexdigest()


def _crc(array: np.ndarray) -> int:
    """CRC-32 of an array, its shape and its dtype."""
    return zlib.crc32(array.tobytes(), zlib.crc32(f"{array.dtype} {array.shape}".encode()))


def _checksum(tokens: np.ndarray, scored: np.ndarray, place: bytes) -> int:
    """CRC-32 of an example: its tokens, which of them are scored, and where it comes from."""
    return zlib.crc32(place, zlib.crc32(scored.tobytes(), zlib.crc32(tokens.tobytes())))


def _settle(partial: Path, folder: Path) -> None:
    """Give a whole part its name, unless it is there already."""
    try:
        partial.rename(folder)
    except OSError:
        if not folder.exists():
            raise


def _pieces(item: Example) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """(tokens, scored, response) of the prompt and each branch."""
    prompt = (item.prompt, np.zeros(len(item.prompt), bool), PROMPT)
    return [prompt, *((b.ids, b.scored, b.response) for b in item.branches)]


def _edges(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """[n + 1] int64: where each of n runs begins; the last entry is where they end."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _scored_counts(
    scored: np.ndarray, bounds: np.ndarray, response: np.ndarray, first: np.ndarray, **_: np.ndarray
) -> np.ndarray:
    """[examples * R] int64: scored tokens of each response."""
    of_piece = np.diff(_edges(scored)[bounds])
    branch = response != PROMPT
    owner = np.repeat(np.arange(len(first) - 1), np.diff(first))
    counts = np.zeros((len(first) - 1, int(response.max()) + 1), np.int64)
    np.add.at(counts, (owner[branch], response[branch]), of_piece[branch])
    return counts.reshape(-1)


def _summary(arrays: dict[str, np.ndarray]) -> Summary:
    tokens, bounds, response, first = (
        arrays[name] for name in ("tokens", "bounds", "response", "first")
    )
    branch, sizes = response != PROMPT, np.diff(bounds)
    prompts = np.repeat(sizes[first[:-1]], np.diff(first))
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return Summary(
        longest=int((sizes + prompts)[branch].max()),
        largest_token=int(tokens.max(initial=0)),
        last_tokens=np.unique(tokens[bounds[1:] - 1][branch]).tolist(),
        digest=digest.hexdigest(),
    )
