"""Examples to a `Batch`: cells of equal work, rows of packed tokens, prompts encoded once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..core.batch import Batch
from ..errors import UserError
from .disk import Joined
from .examples import Example, Item
from .rows import Demand, Place, Shape, lay_out

LOGITS_BYTES = 2**28
"""Size of the float32 logits that a shard may hold at a time."""


@dataclasses.dataclass(frozen=True)
class CachedStats:
    """Token statistics of a data set under frozen models, computed before training.

    Each is {token statistic: [scored tokens of the data set] float32}, in the order of
    `Examples.offsets`; empty where nothing is cached.
    """

    ref: Mapping[str, np.ndarray | Joined] = dataclasses.field(default_factory=dict)
    """Statistics under the reference."""
    start: Mapping[str, np.ndarray | Joined] = dataclasses.field(default_factory=dict)
    """Statistics under the weights that the stage starts from."""


class TokenCounts(NamedTuple):
    """Tokens of a batch."""

    real: int  # that are somebody's
    slots: int  # that go through the model's body, padding included
    scored: int  # that a statistic is computed of, padding left out
    unshared: int  # that would be real if every response had a prompt of its own


def pack(
    items: Sequence[Item | None],
    indices: Sequence[int] | np.ndarray,
    *,
    responses: int,
    microbatches: int,
    shards: int,
    chunks: int,
    row_length: int,
    max_scored: int,
    scores: int = 0,
    cached: CachedStats | None = None,
    offsets: np.ndarray | None = None,
    shapes: Sequence[Shape] = (),
    held: Collection[int] | None = None,
) -> Batch:
    """Pack the examples of one update; the same arguments give the same batch.

    Args:
      items: B examples; None for padding.
      indices: [B] the place of each example in its data set; not read for padding.
      responses: R, responses per example.
      microbatches: n; B must be a multiple of n * shards.
      shards: S, parts of the batch that share no row.
      chunks: parts of a cell whose logits exist one after another; must divide b.
      row_length: the largest of the `row_lengths`, tokens.
      max_scored: T, the most scored tokens that a response may have.
      scores: numbers that a reward head reads at a response's last token, T then; 0: no such head.
      cached: statistics of the data set under frozen models.
      offsets: [N * R + 1] `Examples.offsets` of the data set; needed with `cached`.
      shapes: those that it is to have if one holds it, cheapest first; else it has its own.
      held: the shards to fill; None: all. The others have an outline, as `_outline` says.

    Raises:
      UserError: B cannot be divided into cells.
    """
    b = cell_size(len(items), microbatches, shards)
    if (most := most_scored(items)) > max_scored:
        raise ValueError(f"a response has {most} scored tokens, over max_scored {max_scored}")
    cells, asked = share_out(items, microbatches * shards, chunks, scores)
    shape, places = lay_out(asked, row_length, shapes)
    batch = _empty(
        lead=len(cells),
        shape=shape,
        answers=(b, responses, scores or max_scored),
        columns=next((item.columns for item in items if item), {}),
        cached=cached or CachedStats(),
    )
    for c, cell in enumerate(cells):
        view = _map(batch, lambda x, c=c: x[c])
        own = [items[i] for i in cell]
        _outline(view, own, [int(indices[i]) for i in cell], places[c], scores)
        if held is None or c % shards in held:
            _fill(view, [item.read() if item else None for item in own], places[c], scores)
            if cached and offsets is not None:
                _fill_cached(view, cached, offsets)
    return _map(batch, lambda x: x.reshape(microbatches, shards, *x.shape[1:]))


def share_out(
    items: Sequence[Item | None], count: int, chunks: int, scores: int
) -> tuple[list[list[int]], Demand]:
    """Which items are in each of `count` cells, chunk after chunk, and what they ask of a shape."""
    lengths = [item.length if item else 0 for item in items]
    scored = [_scored(item, scores) for item in items]
    b = len(items) // count
    cells = _balance(range(len(items)), lengths, scored, b)
    parts = [_balance(cell, lengths, scored, b // chunks) for cell in cells]
    cells = [[i for part in cell for i in part] for cell in parts]
    most = max(sum(scored[i] for i in part) for cell in parts for part in cell)
    return cells, Demand([[lengths[i] for i in cell] for cell in cells], chunks, most)


def cell_size(batch_size: int, microbatches: int, shards: int) -> int:
    """b, the examples of one microbatch on one shard.

    Raises:
      UserError: they cannot be shared out evenly.
    """
    cells = microbatches * shards
    if batch_size % cells:
        below = batch_size // cells * cells
        fitting = f"{below} or {below + cells}" if below else str(cells)
        raise UserError(
            f"batch_size {batch_size} cannot be divided into {microbatches} microbatches x "
            f"{shards} shards; got a remainder of {batch_size % cells}; set it to {fitting}, or "
            "change microbatches or the mesh"
        )
    return batch_size // cells


def head_chunks(cell: int, scored: float, vocab: int) -> int:
    """The fewest chunks of a cell whose logits fit in `LOGITS_BYTES`.

    Args:
      cell: b, examples of a cell.
      scored: scored tokens of an example, on average.
      vocab: V, or what a reward head gives.
    """
    divisors = (g for g in range(1, cell + 1) if cell % g == 0)
    fitting = (g for g in divisors if cell // g * scored * vocab * 4 <= LOGITS_BYTES)
    return next(fitting, cell)


def most_scored(items: Iterable[Item | None]) -> int:
    """The most scored tokens of a response."""
    return max((count for item in items if item for count in item.scored_counts), default=0)


def token_counts(batch: Batch) -> TokenCounts:
    """How many tokens a batch holds, costs, scores, and would hold if it shared no prompt."""
    real = batch.segment > 0
    prompts = int((real & (batch.branch == 0)).sum())
    return TokenCounts(
        real=int(real.sum()),
        slots=int(np.prod(batch.ids.shape)),
        scored=int(batch.mask.sum()),
        unshared=int(real.sum()) + (batch.mask.shape[3] - 1) * prompts,
    )


def _scored(item: Item | None, scores: int) -> int:
    if item is None:
        return 0
    return scores * len(item.scored_counts) or sum(item.scored_counts)


def _balance(
    these: Sequence[int], lengths: Sequence[int], scored: Sequence[int], size: int
) -> list[list[int]]:
    """Share items out, `size` to a part, evenly in tokens and in scored tokens.

    The largest first, each to the part whose larger share stays smallest.
    """
    work = np.array([[lengths[i], scored[i]] for i in these], np.float64)
    work /= np.maximum(work.sum(0), 1.0)
    parts: list[list[int]] = [[] for _ in range(len(these) // size)]
    load = np.zeros((len(parts), 2))
    for i in np.argsort(-work.max(1), kind="stable").tolist():
        p = int((load + work[i]).max(1).argmin())
        parts[p].append(these[i])
        load[p] += work[i] if len(parts[p]) < size else np.inf
    return [sorted(part) for part in parts]


def _empty(
    *,
    lead: int,
    shape: Shape,
    answers: tuple[int, int, int],
    columns: Mapping[str, float | tuple[float, ...]],
    cached: CachedStats,
) -> Batch:
    """A batch of `lead` cells of padding.

    `answers` is (b, R, T), `columns` the columns of an example.
    """
    (rows, row_length, *scored), (b, r, t) = shape, answers

    def tokens() -> np.ndarray:
        return np.zeros((lead, rows, row_length), np.int32)

    def zeros(stats: Iterable[str]) -> dict[str, np.ndarray]:
        return {name: np.zeros((lead, *answers), np.float32) for name in stats}

    return Batch(
        ids=tokens(),
        positions=tokens(),
        segment=tokens(),
        branch=tokens(),
        source=np.zeros((lead, *scored), np.int32),
        target=np.zeros((lead, *scored), np.int32),
        slot=np.full((lead, *scored), b // scored[0] * r * t, np.int32),
        mask=np.zeros((lead, *answers), bool),
        weight=np.zeros((lead, b), np.float32),
        example=np.full((lead, b), -1, np.int32),
        columns={k: np.zeros((lead, b, *np.shape(v)), np.float32) for k, v in columns.items()},
        ref=zeros(cached.ref),
        start=zeros(cached.start),
    )


def _map(batch: Batch, fn: Callable[[np.ndarray], np.ndarray]) -> Batch:
    columns, ref, start = ({name: fn(x) for name, x in d.items()} for d in batch[10:])
    return Batch(*map(fn, batch[:10]), columns=columns, ref=ref, start=start)


def _outline(
    cell: Batch,
    items: Sequence[Item | None],
    indices: Sequence[int],
    places: Sequence[Place],
    scores: int,
) -> None:
    """Write the places of one cell's examples, by which metrics count tokens and name examples.

    They are in `segment`, `branch` (here 1 after every prompt), `mask`, `weight` and `example`.
    """
    segment, branch = cell.segment.reshape(-1), cell.branch.reshape(-1)
    for e, (item, index, place) in enumerate(zip(items, indices, places, strict=True)):
        if item is None:
            continue
        cell.weight[e], cell.example[e] = item.weight, index
        start = place.row * cell.ids.shape[1] + place.offset
        segment[start : start + item.length] = place.segment
        branch[start + item.prompt_length : start + item.length] = 1
        for r, count in enumerate(item.scored_counts):
            cell.mask[e, r, : scores or count] = True


def _fill(
    cell: Batch, items: Sequence[Example | None], places: Sequence[Place], scores: int
) -> None:
    """Write the tokens of one cell's examples, after their places."""
    ids, positions, _, branch = (x.reshape(-1) for x in cell[:4])
    row_length, (b, n_responses, max_scored) = cell.ids.shape[1], cell.mask.shape
    per_chunk = b // len(cell.source)
    done = 0
    for e, (item, place) in enumerate(zip(items, places, strict=True)):
        chunk, e_in_chunk = divmod(e, per_chunk)
        done = done if e_in_chunk else 0
        if item is None:
            continue
        for name, value in item.columns.items():
            cell.columns[name][e] = value
        start = place.row * row_length + place.offset
        prompt = len(item.prompt)
        ids[start : start + prompt] = item.prompt
        positions[start : start + prompt] = np.arange(prompt)
        at = start + prompt
        filled = [0] * n_responses
        for k, (tokens, is_scored, r) in enumerate(item.branches):
            n = len(tokens)
            ids[at : at + n] = tokens
            positions[at : at + n] = prompt + np.arange(n)
            branch[at : at + n] = k + 1
            predictors = np.arange(at - 1, at + n - 1)
            predictors[:1] = start + prompt - 1
            source, target = predictors[is_scored], tokens[is_scored]
            if scores:
                last = k + 1 == len(item.branches) or item.branches[k + 1].response > r
                source, target = (np.full(scores * last, at + n - 1), np.arange(scores * last))
            slots = filled[r] + np.arange(len(source))
            span = chunk, slice(done, done + len(source))
            cell.source[span], cell.target[span] = source, target
            cell.slot[span] = (e_in_chunk * n_responses + r) * max_scored + slots
            filled[r] += len(source)
            at, done = at + n, done + len(source)


def _fill_cached(cell: Batch, cached: CachedStats, offsets: np.ndarray) -> None:
    """Write the cached statistics of one cell's scored tokens, in place."""
    n_responses = cell.mask.shape[1]
    for into, stats in ((cell.ref, cached.ref), (cell.start, cached.start)):
        for name, values in stats.items():
            for e in np.flatnonzero(cell.weight):
                for r in range(n_responses):
                    first, end = offsets[cell.example[e] * n_responses + r :][:2]
                    into[name][e, r, : end - first] = values[first:end]
