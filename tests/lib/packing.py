"""An independent packer, and the contexts that a batch shows the model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxalign.core.batch import Batch
from jaxalign.data.examples import Example


def make_example(
    prompt: Sequence[int],
    *responses: Sequence[int],
    where: str = "",
    context: tuple[int, ...] = (),
    **columns: float,
) -> Example:
    arrays = tuple(np.array(r, np.int32) for r in responses)
    return Example(np.array(prompt, np.int32), arrays, columns, where, context)


def hh_like(count: int) -> list[Example]:
    """Pairs about as long as the pairs of HH."""
    rng = np.random.default_rng(0)
    prompts = np.clip(rng.lognormal(4.5, 0.75, count), 5, 500).astype(int)
    answers = np.clip(rng.lognormal(3.4, 0.85, (count, 2)), 2, 250).astype(int)
    return [
        make_example([1] * p, [2] * a, [3] * b) for p, (a, b) in zip(prompts, answers, strict=True)
    ]


def first_scored(item: Example, r: int) -> int:
    """Index of the first scored token in prompt + response r."""
    return max(len(item.prompt) + (item.context[r] if item.context else 0), 1)


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
    K, M = b * R, b * R * T
    L = max(len(x.prompt) + len(r) for x in items if x for r in x.responses)
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
        weight[i, s, e], example[i, s, e] = 1, indices[k]
        for name in names:
            columns[name][i, s, e] = item.columns[name]
        for r in range(R):
            row = e * R + r
            sequence = [*item.prompt, *item.responses[r]]
            for t, token in enumerate(sequence):
                ids[i, s, row, t], positions[i, s, row, t] = token, t
                segment[i, s, row, t] = 1
                branch[i, s, row, t] = r + 1 if t >= len(item.prompt) else 0
            first = first_scored(item, r)
            for t, token in enumerate(sequence[first:]):
                m = row * T + t
                source[i, s, 0, m], target[i, s, 0, m] = row * L + first + t - 1, token
                slot[i, s, 0, m] = m
                mask[i, s, e, r, t] = True
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
        for r, response in enumerate(item.responses if item else ()):
            sequence = [*item.prompt.tolist(), *response.tolist()]
            first = first_scored(item, r)
            for t in range(first, len(sequence)):
                out[index, r, t - first] = (sequence[:t], sequence[t])
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
            assert branch[q] in (0, r + 1)
            assert positions[seen].tolist() == list(range(int(seen.sum())))
            key = (int(batch.example[cell][e]), int(r), int(t))
            assert key not in out
            out[key] = (ids[seen].tolist(), int(target))
    assert len(out) == int(batch.mask.sum())
    return out
