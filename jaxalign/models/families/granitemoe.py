"""Granite 3 with experts (IBM 2024): Granite, with a softmax over the chosen experts."""

from __future__ import annotations

import dataclasses

from ..spec import Spec
from ._experts import experts, number, router
from ._family import ExpertNames, Family
from ._fields import Fields
from ._parts import dense
from .granite import read as read_dense
from .llama import NAMES as LLAMA


def read(f: Fields) -> Spec:
    """The multipliers of Granite; `intermediate_size` is the width of an expert."""
    spec = read_dense(f)
    layer, mlp = spec.layers[0], dense(f)
    chooses = router(f, chosen=2, score="softmax of the chosen")
    total = number(f, 8)
    mixture = experts(f, total, chooses, mlp, mlp.width)
    layer = dataclasses.replace(layer, mlp=mixture)
    return dataclasses.replace(spec, layers=(layer,) * len(spec.layers))


def _names(router: str, fused: str, down: str) -> ExpertNames:
    return ExpertNames(
        {
            ("mlp", "router", "kernel"): f"block_sparse_moe.{router}.weight",
            ("mlp", "gate", "kernel"): f"block_sparse_moe.{fused}",
            ("mlp", "up", "kernel"): f"block_sparse_moe.{fused}",
            ("mlp", "down", "kernel"): f"block_sparse_moe.{down}",
        }
    )


NAMES = dataclasses.replace(
    LLAMA,
    experts=(
        _names("router.layer", "input_linear.weight", "output_linear.weight"),
        _names("router", "experts.gate_up_proj", "experts.down_proj"),
    ),
)
FAMILY = Family(
    "granitemoe",
    read,
    NAMES,
    classifier=None,
    checkpoints="Granite 3.0 and 3.1, 1B-A400M and 3B-A800M",
)
