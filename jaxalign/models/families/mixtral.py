"""Mixtral (Jiang et al. 2024, arXiv:2401.04088): Mistral with eight experts, two for each token."""

from __future__ import annotations

import dataclasses

from ..spec import Layer, Spec
from ._experts import experts, names, number, router
from ._family import Family
from ._fields import Fields
from ._parts import attention, count, decoder, dense, head_width, rms
from ._rope import read_rope
from .llama import NAMES as LLAMA


def read(f: Fields) -> Spec:
    """One window for all layers, if any; the factors of the chosen experts add up to 1."""
    width, norm, mlp = head_width(f), rms(f, 1e-5), dense(f)
    rope = read_rope(f, width, theta=1_000_000.0)
    mixer = attention(f, width, rope, kv_heads=8, window=f.get("sliding_window", int, None))
    total = number(f, 8)
    mixture = experts(f, total, router(f, chosen=2, normalized=True), mlp, mlp.width)
    return decoder(f, [Layer(mixer, mixture, norm)] * count(f), norm)


W = "block_sparse_moe.experts.{}."
NAMES = dataclasses.replace(
    LLAMA,
    experts=names((f"{W}w1", f"{W}w3", f"{W}w2"), routers=("block_sparse_moe.gate", "mlp.gate")),
)
FAMILY = Family(
    "mixtral",
    read,
    NAMES,
    classifier="MixtralForSequenceClassification",
    checkpoints="Mixtral 8x7B and 8x22B",
)
