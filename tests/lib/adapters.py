"""Adapters for the small checkpoints, by PEFT and by jaxalign, with a nonzero B."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import peft
import torch
from lib.checkpoints import in_torch, small_model

from jaxalign.hf.open import open_config
from jaxalign.hf.peft import adaptable, low_rank
from jaxalign.hf.weights import names_of
from jaxalign.models.adapted import Adapted, adapt
from jaxalign.settings import Lora

RANK = 4


def peft_model(base: Path, **options: Any) -> Any:
    """The torch checkpoint with new adapters on all adaptable layers, A and B random."""
    model = in_torch(base)
    spec = open_config(base)
    names = [module.rpartition(".")[-1] for module in adaptable(spec).values()]
    options = {"r": RANK, "lora_alpha": 6, "target_modules": names} | options
    if others := "|".join(map(re.escape, names_of(spec).copied)):
        options["exclude_modules"] = f".*({others}).*"
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **options))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return adapted.eval()


def opened(folder: Path, base: Path) -> Any:
    """An adapter folder as PEFT opens it."""
    model = in_torch(base)
    return peft.PeftModel.from_pretrained(model, folder).eval()


def adapted(base: Path, settings: Lora, **options: Any) -> Adapted:
    """A checkpoint's decoder with adapters."""
    model = small_model(base, **options)
    return adapt(model, low_rank(settings, model.spec, "lora"))


def randomized(model: Adapted, size: float = 0.3) -> Any:
    """Adapters whose A and B are both random."""
    rng = np.random.default_rng(0)

    def draw(x):
        return jax.device_put(size * rng.normal(size=x.shape).astype(np.float32), x.sharding)

    return jax.tree.map(draw, model.abstract)
