"""CPU seconds to compile an update, against the number of layers.

    python -m benchmarks.depth [--write]

DPO with a cached reference and AdamW, on one device: a decoder whose layers are all equal, one
whose layers repeat in sixes, and one with experts. Widths are small, since they hardly matter.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.core.sharding import make_mesh, put_batch
from jaxalign.data.loader import Loader
from jaxalign.data.pack import CachedStats
from jaxalign.models.decoder import build
from jaxalign.models.families import read_config
from jaxalign.objectives import OBJECTIVES
from jaxalign.settings import Mesh, Optimizer
from jaxalign.update.forward import Task
from jaxalign.update.optimizer import optimizer
from jaxalign.update.state import TrainState
from jaxalign.update.step import Fixed, train_step

from . import common
from .scaling import Sizes, random_pairs
from .tables import publish, table

DEPTHS = (4, 16, 64)
SIZES = Sizes(length=64, vocab=512, batch=2)
SHAPE = {
    "vocab_size": SIZES.vocab,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
}
MODELS = {
    "all layers equal": {"model_type": "qwen3"},
    "five with a window, one without": {"model_type": "gemma3_text", "sliding_window": 32},
    "experts": {
        "model_type": "qwen3_moe",
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    },
}


def compile_seconds(config: dict[str, Any], mesh: jax.sharding.Mesh) -> float:
    """CPU seconds to trace and compile an update."""
    model = build(read_config(config), mesh)
    objective = OBJECTIVES["dpo"]
    tx = optimizer(Optimizer(learning_rate=1e-4, schedule="constant"), 1)

    def state() -> TrainState:
        params = model.create(jax.random.key(0))
        return TrainState(params, tx.init(params), jnp.int32(0), None)

    examples = random_pairs(SIZES)
    known = np.full(examples.offsets[-1], -9.0, np.float32)
    loader = Loader(
        examples,
        batch_size=SIZES.batch,
        microbatches=1,
        shards=1,
        row_length=SIZES.length * 3 // 2,
        shapes=1,
        seed=0,
        cached=CachedStats({s.name: known for s in objective.needs}),
    )
    batch: Any = put_batch(loader.batch(0), mesh)
    step = jax.jit(functools.partial(train_step, [Task(objective, {}, model.forward)], tx))
    began = time.process_time()
    step.lower(jax.eval_shape(state), [batch], Fixed()).compile()
    return time.process_time() - began


def main() -> int:
    """Measure every depth and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the table to results/")
    args = parser.parse_args()
    common.start()
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    rows = [["layers", *map(str, DEPTHS)]]
    with jax.set_mesh(mesh):
        compile_seconds(SHAPE | MODELS["experts"] | {"num_hidden_layers": 1}, mesh)  # warm up
        for name, own in MODELS.items():
            configs = [SHAPE | own | {"num_hidden_layers": n} for n in DEPTHS]
            rows.append([name, *(f"{compile_seconds(c, mesh):.1f}" for c in configs)])
    about = "CPU seconds to trace and compile; the pattern is compiled once, whatever the depth."
    parts = ["# Compilation against the number of layers", "`python -m benchmarks.depth`", about]
    publish("depth", "\n\n".join([*parts, table(rows), common.versions()]), args.write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
