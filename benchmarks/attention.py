"""CPU seconds and temporaries of attention, forward and backward: `blocked` and plain jax.nn.

Rows of 256, 512 and 1024 tokens, 4,096 tokens in all; 8 heads of width 64 on 4 key heads, float32.
A row is one sequence, or is packed with prompts of two responses each. The programs take turns; a
figure is the median of the rounds.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.core.types import Array
from jaxalign.models.attention.blocked import blocked
from jaxalign.models.attention.mask import RowMask

from .common import versions
from .tables import table

TOKENS, HEADS, GROUPS, WIDTH = 4096, 8, 4, 64
ROUNDS = 9


def dense(q: Array, k: Array, v: Array, mask: RowMask) -> Array:
    """Attention with all scores at once."""
    visible = mask.visible()[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=visible, implementation="xla")


def causal(q: Array, k: Array, v: Array, mask: RowMask) -> Array:
    """Attention on rows of one sequence, without reading the mask."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="xla")


def rows(length: int, packed: bool) -> RowMask:
    """4,096 tokens: one sequence per row, or rows filled with prompts of two responses each."""
    shape = (TOKENS // length, length)
    segment, branch = np.ones(shape, np.int32), np.zeros(shape, np.int32)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), shape).copy()
    rng = np.random.default_rng(0)
    for n in range(len(segment)) if packed else ():
        at, number = 0, 0
        while at < length:
            prompt, *responses = rng.integers(20, 100, 3)
            number += 1
            first = 0
            for r, size in enumerate((prompt, *responses)):
                span = slice(at, min(at + size, length))
                positions[n, span] = first + np.arange(max(span.stop - at, 0))
                segment[n, span], branch[n, span] = number, r
                at, first = at + size, prompt
    return RowMask(jnp.asarray(segment), jnp.asarray(branch), jnp.asarray(positions))


def program(attention, mask: RowMask):
    """The compiled gradient as a function, the megabytes of its temporaries, and its results."""
    k, length = mask.segment.shape
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(k, length, n, WIDTH) for n in (HEADS, GROUPS, GROUPS, HEADS)]
    arrays = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]

    def both(q, k, v, cotangent, mask):
        out, vjp = jax.vjp(lambda *x: attention(*x, mask), q, k, v)
        return out, *vjp(cotangent)

    compiled = jax.jit(both).lower(*arrays, mask).compile()
    memory: Any = compiled.memory_analysis()

    def run():
        return jax.block_until_ready(compiled(*arrays, mask))

    return run, memory.temp_size_in_bytes / 1e6


def main() -> None:
    """Measure and print the table."""
    argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0]).parse_args()
    head = ("row", "rows", "mask", "jax.nn, s", "ours, s", "ratio", "jax.nn, MB", "ours, MB")
    rows_of_table: list[tuple[str, ...]] = [(*head, "differ by")]
    for length in (256, 512, 1024):
        for name, plain in (("causal", causal), ("packed", dense)):
            mask = rows(length, name == "packed")
            pair = [program(f, mask) for f in (plain, blocked)]
            a, b = (run() for run, _ in pair)
            off = max(float(jnp.max(jnp.abs(x - y))) for x, y in zip(a, b, strict=True))
            seconds = [[], []]
            for _ in range(ROUNDS):
                for (run, _), spent in zip(pair, seconds, strict=True):
                    start = time.process_time()
                    run()
                    spent.append(time.process_time() - start)
            theirs, ours = (float(np.median(s)) for s in seconds)
            cells = [length, TOKENS // length, name, f"{theirs:.3f}", f"{ours:.3f}"]
            cells += [f"{theirs / ours:.1f}x", *(f"{m:.0f}" for _, m in pair), f"{off:.0e}"]
            rows_of_table.append(tuple(map(str, cells)))
    print(f"{versions()}\n\n{table(rows_of_table)}")


if __name__ == "__main__":
    main()
