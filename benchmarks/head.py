"""The head, forward and backward: CPU seconds and temporaries against full logits.

    python -m benchmarks.head [--vocab 8192 50304 131072] [--write]

32 pairs with 64 scored tokens in each response, hidden states of width 256, float32, DPO and SLPO
with a cached reference. `full` is log_softmax over all logits, the most common form; `again` is the
usual remedy, chunks whose logits are computed again in the backward pass; `ours` forms the
gradients within the forward. The forms take turns; a figure is the median of the rounds.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.core.objective import Objective
from jaxalign.core.stats import logp, reduce_tokens
from jaxalign.core.types import Array, Pairs, select_rows
from jaxalign.data.pack import head_chunks
from jaxalign.models.layers.head import Head
from jaxalign.objectives import OBJECTIVES
from jaxalign.update.gradient import sum_over_chunks
from jaxalign.update.head import token_stats

from .common import versions
from .tables import publish, table

PAIRS, TOKENS, WIDTH, ROUNDS = 32, 64, 256, 5
VOCABULARIES = (8192, 50304, 131072)


def loss(objective: Objective[Any], token: dict[str, Array], ref: dict[str, Array]) -> Array:
    """The sum over pairs, from token statistics [pairs, 2, T] of both models."""
    mask = jnp.ones(token["logp"].shape, bool)
    policy, old = (select_rows(Pairs, reduce_tokens(x, mask)) for x in (token, ref))
    return objective.bind()(policy=policy, ref=old, batch={}, state=None)[0].terms[0].total.sum()


def full(objective: Objective[Any], hidden: Array, head: Array, target: Array, ref: Any) -> Any:
    """Logits of all tokens at once; the complement from log p, to float32's precision."""

    def value(hidden: Array, head: Array) -> Array:
        log_p = jax.nn.log_softmax(hidden.reshape(-1, WIDTH) @ head)
        log_p = jnp.take_along_axis(log_p, target.reshape(-1, 1), -1).reshape(target.shape)
        token = {"logp": log_p, "log_complement": jnp.log(-jnp.expm1(log_p))}
        return loss(objective, {s.name: token[s.name] for s in objective.needs}, ref)

    return jax.value_and_grad(value, (0, 1))(hidden, head)


def again(objective: Objective[Any], hidden: Array, head: Array, target: Array, ref: Any) -> Any:
    """A chunk at a time, its logits computed again in the backward pass."""
    count = chunks(head.shape[1])

    def value(hidden: Array, head: Array) -> Array:
        @jax.checkpoint
        def block(item: tuple[Array, Array]) -> dict[str, Array]:
            h, y = item
            return token_stats(
                h.reshape(1, -1, WIDTH), Head(head), y.reshape(1, -1), objective.needs
            )

        parts = (x.reshape(count, -1, *x.shape[1:]) for x in (hidden, target))
        token = jax.lax.map(block, tuple(parts))
        return loss(objective, {k: v.reshape(target.shape) for k, v in token.items()}, ref)

    return jax.value_and_grad(value, (0, 1))(hidden, head)


def ours(objective: Objective[Any], hidden: Array, head: Array, target: Array, ref: Any) -> Any:
    """A chunk at a time, its backward pass at once."""
    count = chunks(head.shape[1])

    def of_chunk(h: Array, head: Head, item: tuple[Array, dict[str, Array]]) -> Any:
        y, old = item
        token = token_stats(h, head, y.reshape(1, -1), objective.needs)
        return loss(objective, {k: v.reshape(y.shape) for k, v in token.items()}, old), ()

    parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), (target, ref))
    found = sum_over_chunks(of_chunk, hidden.reshape(count, 1, -1, WIDTH), Head(head), parts)
    return found.value, (found.hidden.reshape(hidden.shape), found.head and found.head.matrix)


def chunks(vocab: int) -> int:
    """The number of chunks that jaxalign would choose."""
    return head_chunks(PAIRS, 2 * TOKENS, vocab)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--vocab", type=int, nargs="+", default=VOCABULARIES)
    parser.add_argument("--write", action="store_true", help="also to results/head.md")
    own = parser.parse_args()
    head = ("objective", "V", "chunks", "full, s", "again, s", "ours, s", "time of full")
    rows: list[tuple[str, ...]] = [
        (*head, "full, MB", "again, MB", "ours, MB", "memory of full", "differ by")
    ]
    for vocab in own.vocab:
        for name in ("dpo", "slpo"):
            rows.append(measured(name, vocab))
    publish("head", f"{versions()}\n\n{table(rows)}", own.write)


def measured(name: str, vocab: int) -> tuple[str, ...]:
    """One row of the table."""
    objective, rng = OBJECTIVES[name], np.random.default_rng(0)
    shape = (PAIRS, 2, TOKENS)
    hidden = jnp.asarray(rng.normal(size=(*shape, WIDTH)), jnp.float32)
    head = jnp.asarray(rng.normal(size=(WIDTH, vocab)) / np.sqrt(WIDTH), jnp.float32)
    target = jnp.asarray(rng.integers(0, vocab, shape), jnp.int32)
    ref = {s.name: jnp.full(shape, -0.5 if s is not logp else -9.0) for s in objective.needs}
    programs, memory = [], []
    for way in (full, again, ours):
        run = jax.jit(lambda h, w, way=way: way(objective, h, w, target, ref))
        compiled = run.lower(hidden, head).compile()
        analysis: Any = compiled.memory_analysis()
        programs.append(compiled)
        memory.append(analysis.temp_size_in_bytes / 1e6)
    results = [jax.block_until_ready(p(hidden, head)) for p in programs]
    seconds: list[list[float]] = [[], [], []]
    for _ in range(ROUNDS):
        for spent, compiled in zip(seconds, programs, strict=True):
            began = time.process_time()
            jax.block_until_ready(compiled(hidden, head))
            spent.append(time.process_time() - began)
    took = [float(np.median(s)) for s in seconds]
    pairs = zip(jax.tree.leaves(results[0][1]), jax.tree.leaves(results[2][1]), strict=True)
    off = max(float(jnp.abs(a - b).max() / jnp.abs(a).max()) for a, b in pairs)
    return (
        *(name, f"{vocab:,}", str(chunks(vocab)), *(f"{t:.2f}" for t in took)),
        f"{took[2] / took[0]:.2f}",
        *(f"{m:,.0f}" for m in memory),
        *(f"{memory[2] / memory[0]:.3f}", f"{off:.0e}"),
    )


if __name__ == "__main__":
    main()
