"""Tunix's DPOTrainer on its own Qwen3, random weights, prompts and responses padded to fixed sizes.

    python -m benchmarks.race.tunix_side FOLDER

The sizes are the longest prompt and the longest response of the race. The reference is a second
model that runs in every step: Tunix has no other.
"""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.models.spec import Dense, Softmax

from . import work
from .pipe import Pipe, run


def padded(parts: Sequence[np.ndarray], size: int, *, left: bool) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask, [B, size] int32."""
    ids, mask = np.zeros((2, len(parts), size), np.int32)
    for i, part in enumerate(parts):
        span = slice(size - len(part), size) if left else slice(len(part))
        ids[i, span], mask[i, span] = part, 1
    return ids, mask


def batches(folder: Path) -> list[dict[str, np.ndarray]]:
    """The inputs of the steps, with Tunix's names."""
    pairs = work.load(folder)
    prompt = max(len(p.prompt) for p in pairs)
    response = max(len(r) for p in pairs for r in (p.chosen, p.rejected))
    made = []
    for batch in work.batches(folder):
        inputs = {}
        for name, size in (("prompt", prompt), ("chosen", response), ("rejected", response)):
            parts = [getattr(pair, name) for pair in batch]
            ids, mask = padded(parts, size, left=name == "prompt")
            inputs |= {f"{name}_ids": ids, f"{name}_mask": mask}
        made.append(inputs)
    return made


def models(folder: Path) -> tuple[Any, Any]:
    """The policy and an equal reference, of the sizes of the folder's checkpoint."""
    from flax import nnx

    qwen3 = importlib.import_module("tunix.models.qwen3.model")
    shape = work.decoder(folder)
    first = shape.layers[0]
    assert isinstance(first.attention, Softmax)
    assert isinstance(first.mlp, Dense)
    config = qwen3.ModelConfig(
        num_layers=len(shape.layers),
        vocab_size=shape.vocab,
        embed_dim=shape.width,
        hidden_dim=first.mlp.width,
        num_heads=first.attention.heads,
        head_dim=first.attention.head_width,
        num_kv_heads=first.attention.kv_heads,
        rope_theta=10_000,
        norm_eps=1e-6,
    )
    policy, ref = (qwen3.Qwen3(config, rngs=nnx.Rngs(params=0)) for _ in range(2))
    return policy, ref


def side(pipe: Pipe) -> None:
    """Load, then serve."""
    import jax
    import optax
    from flax import nnx

    dpo_trainer = importlib.import_module("tunix.sft.dpo.dpo_trainer")
    pipe.imported()
    folder = Path(sys.argv[1])
    policy, ref = models(folder)
    rule = optax.adamw(work.terms(folder).rate, weight_decay=0)
    rule = optax.chain(optax.clip_by_global_norm(work.CLIP), rule)
    config = dpo_trainer.DPOTrainingConfig(eval_every_n_steps=1_000_000, beta=work.BETA)
    trainer = dpo_trainer.DPOTrainer(policy, ref, rule, config)
    # The inner step of its `train`: the loop around it would run ahead of the clock.
    update, _ = trainer.jit_train_and_eval_step(cache_nnx_graph=True)
    stream = itertools.cycle(batches(folder))

    def step() -> tuple[float, float]:
        loss, _, norm = update(trainer._prepare_inputs(next(stream)))
        jax.block_until_ready(nnx.state(trainer.model))
        return float(loss), float(norm)

    pipe.serve(step, "google-tunix", "jax", "flax")


if __name__ == "__main__":
    run(side)
