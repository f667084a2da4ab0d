"""One update of `shapes`, measured on the first device of this process."""

from __future__ import annotations

import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.data.examples import Example
from jaxalign.data.pack import token_counts
from jaxalign.models.config import ModelConfig
from jaxalign.settings import Mesh
from jaxalign.sharding import make_mesh, put_batch

from . import shapes
from .gpu import Case
from .race import work

PAIRS: dict[str, tuple[Callable[[int], list[Example]], int]] = {
    "HH": (lambda vocab: shapes.hh_like(64, vocab), 2048),
    "2,048": (lambda vocab: shapes.filling(8, vocab, 2048), 2048),
    "few": (lambda vocab: shapes.filling(4, vocab, 128), 128),
}
"""The pairs of an update, given the vocabulary, and their longest packed row, tokens."""


def useful_flops(config: ModelConfig, items: Sequence[Example], adapters: int) -> int:
    """FLOPs that an update cannot do without.

    Three times those of the forward pass. Where only adapters are trained there is no gradient of
    any other matrix: twice for the products with these, and three times for the adapters.

    Args:
      config: the decoder.
      items: pairs of the update.
      adapters: scalars of all adapters; 0 where all parameters are trained.
    """
    forward = work.forward_flops(config, [work.Pair(x.prompt, *x.responses) for x in items])
    if not adapters:
        return 3 * sum(forward)
    low_rank = 2 * adapters * sum(x.length for x in items)
    return 2 * (forward.linear + forward.head) + 3 * (forward.attention + low_rank)


def product_rate(side: int) -> float:
    """FLOP/s of the product of two square bfloat16 matrices, the best of ten."""
    product = jax.jit(jnp.matmul)
    a = jax.random.normal(jax.random.key(0), (side, side), jnp.bfloat16)
    return 2 * side**3 / min(_seconds(lambda: product(a, a), 10))


def _seconds(call: Callable[[], Any], repeats: int) -> list[float]:
    """Wall seconds of each call, after one that compiles and one that warms up."""
    took = []
    for _ in range(repeats + 2):
        began = time.perf_counter()
        jax.block_until_ready(call())
        took.append(time.perf_counter() - began)
    return took[2:]


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """What a row of the table needs, by name; times in seconds, `rate` in FLOP/s."""
    device = jax.devices()[0]
    mesh = make_mesh(Mesh(), [device])
    job = shapes.Work(case.model, objective=case.objective, lora=case.lora)
    draw, row = PAIRS[case.pairs]
    items = draw(job.config.vocab)
    packed = shapes.packed(items, job, shards=1, microbatches=1, row=row)
    rate = product_rate(8192 if device.platform == "gpu" else 512)
    with jax.set_mesh(mesh):
        program = shapes.program(job, mesh)
        frozen, state = program.start()
        batch: Any = put_batch(packed, mesh)

        def update() -> Any:
            nonlocal state
            state, out = program.update(frozen, state, batch)
            return state, out["loss"]

        seconds = statistics.median(_seconds(update, repeats))
        if not jnp.isfinite(update()[1]):
            raise SystemExit(f"{case}: the loss is not finite")
    trained = shapes.parameters(state.params)
    memory = device.memory_stats() or {}
    return {
        "seconds": seconds,
        "tokens": token_counts(packed).real,
        "flops": useful_flops(job.config, items, trained if case.lora else 0),
        "rate": rate,
        "peak_bytes": memory.get("peak_bytes_in_use"),
        "about": _versions(device),
    }


def _versions(device: Any) -> str:
    names = ("jax", "jaxlib", "flax", "optax")
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    return f"python {platform.python_version()}, {packages}; {device.device_kind}"
