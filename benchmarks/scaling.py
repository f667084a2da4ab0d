"""How the CPU time of an update grows with length, vocabulary, batch and depth.

    python -m benchmarks.scaling [--repeats N] [--write]

DPO with a cached reference on a random Llama, float32, AdamW. One size is varied at a time; the
exponent is the slope of log CPU seconds over log size, by least squares over the row's sizes. A
pair of length T is a prompt of T/2 tokens and two responses of T/2; a row holds one pair.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.core.sharding import make_mesh, put_batch
from jaxalign.data.examples import Example
from jaxalign.data.loader import Loader
from jaxalign.data.pack import CachedStats
from jaxalign.data.store import Examples
from jaxalign.models.decoder import build
from jaxalign.models.families import read_config
from jaxalign.models.spec import Spec
from jaxalign.objectives import OBJECTIVES
from jaxalign.settings import Mesh, Optimizer
from jaxalign.update.forward import Task
from jaxalign.update.optimizer import optimizer
from jaxalign.update.state import TrainState
from jaxalign.update.step import Fixed, train_step

from . import common
from .tables import publish, table

MICROBATCH = 2  # pairs


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of one measurement."""

    length: int = 256
    vocab: int = 8192
    batch: int = 8
    depth: int = 4


SWEEPS = {
    "length": (128, 256, 512),
    "vocab": (2048, 8192, 32768),
    "batch": (4, 8, 16),
    "depth": (2, 4, 8),
}


def llama(sizes: Sizes) -> Spec:
    """A model of width 256 with 4 heads."""
    return read_config(
        {
            "model_type": "llama",
            "vocab_size": sizes.vocab,
            "hidden_size": 256,
            "intermediate_size": 768,
            "num_hidden_layers": sizes.depth,
            "num_attention_heads": 4,
            "max_position_embeddings": sizes.length,
        }
    )


def random_pairs(sizes: Sizes) -> Examples:
    """One batch of random tokens."""
    rng = np.random.default_rng(0)

    def ids() -> np.ndarray:
        return rng.integers(0, sizes.vocab, sizes.length // 2, dtype=np.int32)

    items = [Example.of(ids(), ids(), ids()) for _ in range(sizes.batch)]
    return Examples.of(items)


def make_update(sizes: Sizes, mesh: jax.sharding.Mesh) -> Callable[[], None]:
    """An update that blocks until it is done; the first call compiles."""
    model = build(llama(sizes), mesh, dtype="float32", param_dtype="float32", remat="none")
    objective = OBJECTIVES["dpo"]
    task = Task(objective, {}, model.forward)
    tx = optimizer(Optimizer(learning_rate=1e-4, schedule="constant"), 1)
    params = model.init(jax.random.key(0))
    state = TrainState(params, tx.init(params), jnp.int32(0), None)
    examples = random_pairs(sizes)
    loader = Loader(
        examples,
        batch_size=sizes.batch,
        microbatches=sizes.batch // MICROBATCH,
        shards=1,
        row_length=sizes.length * 3 // 2,
        shapes=1,
        seed=0,
        cached=CachedStats(
            {s.name: np.full(examples.offsets[-1], -9.0, np.float32) for s in objective.needs}
        ),
    )
    batch: Any = put_batch(loader.batch(0), mesh)
    step = jax.jit(functools.partial(train_step, [task], tx), donate_argnums=0)

    def update() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(step(state, [batch], Fixed()))

    return update


def cpu_seconds(sizes: Sizes, mesh: jax.sharding.Mesh, repeats: int) -> float:
    """Median CPU seconds of an update."""
    update = make_update(sizes, mesh)
    update()
    took = []
    for _ in range(repeats):
        began = time.process_time()
        update()
        took.append(time.process_time() - began)
    return statistics.median(took)


def main() -> int:
    """Measure every size and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write the table to results/")
    args = parser.parse_args()
    common.start()
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    rows = [["varied", "CPU s at each size", "exponent", "exponent of the last two"]]
    with jax.set_mesh(mesh):
        measure = functools.cache(lambda sizes: cpu_seconds(sizes, mesh, args.repeats))
        for name, values in SWEEPS.items():
            took = [measure(dataclasses.replace(Sizes(), **{name: value})) for value in values]
            print(name, took, file=sys.stderr, flush=True)
            x, y = np.log(values), np.log(took)
            cells = ", ".join(f"{v:,}: {t:.2f}" for v, t in zip(values, took, strict=True))
            last = (y[-1] - y[-2]) / (x[-1] - x[-2])
            rows.append([name, cells, f"{np.polyfit(x, y, 1)[0]:.2f}", f"{last:.2f}"])
    base = ", ".join(f"{k} {v:,}" for k, v in dataclasses.asdict(Sizes()).items())
    about = f"Where not varied: {base}; width 256, {MICROBATCH} pairs a microbatch."
    run = f"`python -m benchmarks.scaling --repeats {args.repeats}`"
    parts = ["# CPU time of an update against its sizes", run, about, table(rows)]
    publish("scaling", "\n\n".join([*parts, common.versions()]), args.write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
