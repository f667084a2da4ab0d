"""TRL's DPOTrainer: its own loop, step, clipping and optimizer, on the pairs' token ids.

    python -m benchmarks.race.trl_side FOLDER live|cached

`cached`: `precompute_ref_log_probs`. On a GPU it runs with its defaults: bfloat16 products of
float32 weights, gradient checkpointing. On the CPU both are turned off.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from . import work
from .pipe import Pipe, run

STEPS = 1_000_000  # more steps than any race has


def settings(folder: Path, reference: str, gpu: bool) -> dict[str, Any]:
    """The arguments of TRL's configuration."""
    terms = work.terms(folder)
    cpu = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False}
    return ({} if gpu else cpu) | {
        "output_dir": str(folder / f"trl-{reference}"),
        "beta": work.BETA,
        "precompute_ref_log_probs": reference == "cached",
        "per_device_train_batch_size": terms.batch,
        "max_length": terms.length,
        "learning_rate": terms.rate,
        "lr_scheduler_type": "constant",
        "max_grad_norm": work.CLIP,
        "max_steps": STEPS,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def side(pipe: Pipe) -> None:
    """Train, each step of the loop on command."""
    import datasets
    import torch
    import transformers

    trl = importlib.import_module("trl")  # a dependency of the tests alone

    class GivenIds(trl.DPOTrainer):
        """Skips the tokenization, and takes the pairs in their order."""

        def _prepare_dataset(self, dataset, *args):
            return dataset

        def _get_train_sampler(self, *args):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    class Driven(transformers.TrainerCallback):
        """Holds the loop before each step; everything until it logs is part of the step."""

        def on_train_begin(self, *args, **kwargs):
            pipe.ready("trl", "torch", "transformers")

        def on_step_begin(self, *args, **kwargs):
            if not pipe.wait():
                sys.exit()

        def on_log(self, *args, **kwargs):
            pipe.done(kwargs["logs"]["loss"], kwargs["logs"]["grad_norm"])

    folder, reference = Path(sys.argv[1]), sys.argv[2]
    pipe.imported()
    gpu = torch.cuda.is_available()
    if gpu:
        pipe.peak = lambda: torch.cuda.max_memory_allocated() / 1e6
    keys = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows = [dict(zip(keys, map(list, pair), strict=True)) for pair in work.load(folder)]
    model, ref = (
        transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
        for _ in range(2)
    )
    GivenIds(
        model=model,
        ref_model=ref,
        args=trl.DPOConfig(**settings(folder, reference, gpu)),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=transformers.PreTrainedTokenizerFast.from_pretrained(folder / "model"),
        callbacks=[Driven()],
    ).train()


if __name__ == "__main__":
    run(side)
