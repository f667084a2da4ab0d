"""An independent packer, and the contexts that a batch shows the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from jaxalign.core.batch import Batch
from jaxalign.data.examples import Branch, Example


def make_example(
    prompt: Sequence[int],
    *responses: Sequence[int],
    where: str = "",
    context: tuple[int, ...] = (),
    **columns: float,
) -> Example:
    """A branch for each response, scored from its context on."""
    branches = []
    for r, ids in enumerate(responses):
        scored = np.arange(len(ids)) >= max(context[r] if context else 0, len(prompt) == 0)
        branches.append(Branch(np.array(ids, np.int32), scored, r))
    return Example(np.array(prompt, np.int32), tuple(branches), columns, where)


def in_spans(item: Example, rng: np.random.Generator) -> Example:
    """The example with context inside its responses, each cut into one to three branches."""
    branches = []
    for r in range(item.responses):
        ids = item.branches[r].ids
        pieces = min(rng.integers(1, 4), len(ids)) if len(item.prompt) else 1
        for piece in np.array_split(ids, pieces):
            scored = rng.random(len(piece)) < 0.5
            scored[0] &= len(item.prompt) > 0
            scored[-1] = True
            branches.append(Branch(piece, scored, r))
    return item._replace(branches=tuple(branches))


def hh_like(count: int) -> list[Example]:
    """Pairs about as long as the pairs of HH."""
    rng = np.random.default_rng(0)
    prompts = np.clip(rng.lognormal(4.5, 0.75, count), 5, 500).astype(int)
    answers = np.clip(rng.lognormal(3.4, 0.85, (count, 2)), 2, 250).astype(int)
    return [
        make_example([1] * p, [2] * a, [3] * b) for p, (a, b) in zip(prompts, answers, strict=True)
    ]


def sequences(item: Example) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """(tokens, indices of the scored ones, response) of the prompt with each branch."""
    return [
        (np.concatenate([item.prompt, ids]), len(item.prompt) + np.flatnonzero(scored), r)
        for ids, scored, r in item.branches
    ]


def unshared_batch(
    items: Sequence[Example | None],
    indices: Sequence[int],
    *,
    responses: int,
    microbatches: int,
    shards: int,
    max_scored: int,
    chunks: int = 1,
) -> Batch:
    """Pack every sequence whole and alone in a row, padded to the longest.

    Examples go to the cells in the order given, and a cell is one chunk whatever `chunks` is;
    compare with `pack` by `Batch.example`.
    """
    n, S, R, T = microbatches, shards, responses, max_scored
    b = len(items) // (n * S)
    Q = max(len(x.branches) for x in items if x)
    K, M = b * Q, b * R * T
    L = max(len(ids) for x in items if x for ids, _, _ in sequences(x))
    shape = (n, S, K, L)
    ids, positions, segment, branch = (np.zeros(shape, np.int32) for _ in range(4))
    source, target = np.zeros((n, S, 1, M), np.int32), np.zeros((n, S, 1, M), np.int32)
    slot = np.full((n, S, 1, M), b * R * T, np.int32)
    mask = np.zeros((n, S, b, R, T), bool)
    weight = np.zeros((n, S, b), np.float32)
    example = np.full((n, S, b), -1, np.int32)
    names = next(x for x in items if x).columns
    columns = {k: np.zeros((n, S, b, *np.shape(v)), np.float32) for k, v in names.items()}
    for k, item in enumerate(items):
        i, s, e = k // (S * b), k // b % S, k % b
        if item is None:
            continue
        weight[i, s, e], example[i, s, e] = item.weight, indices[k]
        for name in names:
            columns[name][i, s, e] = item.columns[name]
        done = [0] * R
        for q, (sequence, scored, r) in enumerate(sequences(item)):
            row, n_tokens = e * Q + q, len(sequence)
            ids[i, s, row, :n_tokens], positions[i, s, row, :n_tokens] = sequence, range(n_tokens)
            segment[i, s, row, :n_tokens] = 1
            branch[i, s, row, len(item.prompt) : n_tokens] = q + 1
            for at in scored:
                m = (e * R + r) * T + done[r]
                source[i, s, 0, m], target[i, s, 0, m] = row * L + at - 1, sequence[at]
                slot[i, s, 0, m] = m
                mask[i, s, e, r, done[r]] = True
                done[r] += 1
    rows = ids, positions, segment, branch
    return Batch(
        *rows, source, target, slot, mask, weight, example, columns=columns, ref={}, start={}
    )


Scored = dict[tuple[int, int, int], tuple[list[int], int]]
"""{(example, response, scored token): (the tokens that its predictor sees, the token)}."""


def expected_contexts(items: Sequence[Example | None], indices: Sequence[int]) -> Scored:
    """The contexts that the model must see, from the examples alone."""
    out: Scored = {}
    for item, index in zip(items, indices, strict=True):
        done = Counter()
        for sequence, scored, r in sequences(item) if item else ():
            for at in scored:
                out[index, r, done[r]] = (sequence[:at].tolist(), int(sequence[at]))
                done[r] += 1
    return out


def contexts(batch: Batch) -> Scored:
    """The contexts that the model sees, from the arrays of a batch and the rule of attention.

    A predictor sees the tokens before it in its segment of the row, in the prompt or in its own
    branch. Their positions must be 0, 1, 2, ...
    """
    out: Scored = {}
    _, _, b, R, T = batch.mask.shape
    G, L = batch.source.shape[2], batch.ids.shape[-1]
    for *cell, g in np.ndindex(*batch.source.shape[:3]):
        cell = tuple(cell)
        for source, target, slot in zip(
            *(x[(*cell, g)] for x in (batch.source, batch.target, batch.slot)), strict=True
        ):
            if slot == b // G * R * T:
                continue
            k, q = divmod(int(source), L)
            e, r, t = np.unravel_index(slot, (b // G, R, T))
            e += g * (b // G)
            before = slice(0, q + 1)
            row = [x[cell][k] for x in (batch.ids, batch.positions, batch.segment, batch.branch)]
            ids, positions, segment, branch = (x[before] for x in row)
            seen = (segment == segment[q]) & ((branch == 0) | (branch == branch[q]))
            assert segment[q] > 0
            assert batch.mask[cell][e, r, t]
            assert positions[seen].tolist() == list(range(int(seen.sum())))
            key = (int(batch.example[cell][e]), int(r), int(t))
            assert key not in out
            out[key] = (ids[seen].tolist(), int(target))
    assert len(out) == int(batch.mask.sum())
    return out
