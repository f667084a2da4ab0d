"""Seconds of a gradient of a decoder with experts: jaxalign, and transformers in torch.

    python -m benchmarks.mixture [--rounds N] [--write]

The same random checkpoint, the same tokens, float32: the mean cross-entropy of the next token and
its gradient for all parameters. The two take turns, in one process; a figure is the median.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from jaxalign.core.sharding import make_mesh
from jaxalign.hf.load import load_config, load_params
from jaxalign.models.decoder import build
from jaxalign.models.families import read_config
from jaxalign.settings import Mesh

from . import common
from .tables import publish, table

ROWS, LENGTH = 4, 512
BASE = {
    "vocab_size": 2048,
    "hidden_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "moe_intermediate_size": 384,
}
MIXTURES = {
    "4 of 32 experts": {"num_experts": 32, "num_experts_per_tok": 4},
    "8 of 128 experts": {"num_experts": 128, "num_experts_per_tok": 8},
}


def in_torch(folder: Path, ids: np.ndarray) -> Callable[[], float]:
    """The loss by transformers, after its gradient."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.from_numpy(ids).long()

    def run() -> float:
        model.zero_grad()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        return loss.item()

    return run


def in_jax(folder: Path, ids: np.ndarray, mesh: jax.sharding.Mesh) -> Callable[[], float]:
    """The loss by jaxalign, after its gradient."""
    model = build(read_config(load_config(folder)), mesh)
    params = load_params(folder, model)
    positions = jnp.broadcast_to(jnp.arange(LENGTH), ids.shape)
    ones = jnp.ones(ids.shape, jnp.int32)

    @jax.jit
    def both(params, ids):
        def loss(params):
            encoded = model.forward(params, ids, positions, ones, ones)
            logps = jax.nn.log_softmax(encoded.head.logits(encoded.hidden))[:, :-1]
            return -jnp.mean(jnp.take_along_axis(logps, ids[:, 1:, None], -1))

        return jax.value_and_grad(loss)(params)

    return lambda: float(jax.block_until_ready(both(params, ids))[0])


def measure(config: dict[str, int], rounds: int, mesh: jax.sharding.Mesh) -> list[str]:
    """Seconds of both and their ratio, and the difference of their losses."""
    torch.manual_seed(0)
    shape = transformers.AutoConfig.for_model("qwen3_moe", **BASE, **config)
    ids = np.random.default_rng(0).integers(0, BASE["vocab_size"], (ROWS, LENGTH), np.int32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        transformers.AutoModelForCausalLM.from_config(shape).save_pretrained(folder)
        runs = in_torch(folder, ids), in_jax(folder, ids, mesh)
    losses = [run() for run in runs]
    seconds: tuple[list[float], list[float]] = [], []
    for _ in range(rounds):
        for run, took in zip(runs, seconds, strict=True):
            began = time.perf_counter()
            run()
            took.append(time.perf_counter() - began)
    theirs, ours = (statistics.median(s) for s in seconds)
    off = f"{abs(losses[0] - losses[1]):.0e}"
    return [f"{theirs:.2f}", f"{ours:.2f}", f"{theirs / ours:.2f}x", off]


def main() -> int:
    """Measure every mixture and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write the table to results/")
    args = parser.parse_args()
    common.start()
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    rows = [["mixture", "torch, s", "jaxalign, s", "ratio", "losses differ by"]]
    with jax.set_mesh(mesh):
        rows += [[name, *measure(c, args.rounds, mesh)] for name, c in MIXTURES.items()]
    sizes = ", ".join(f"{k} {v:,}" for k, v in BASE.items())
    about = f"Qwen3 with experts: {sizes}; {ROWS} rows of {LENGTH} tokens, float32."
    parts = ["# The gradient of a decoder with experts", "`python -m benchmarks.mixture`", about]
    text = "\n\n".join([*parts, table(rows), common.versions("torch")])
    publish("mixture", text, args.write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
