"""Qwen3 with experts (Yang et al. 2025, arXiv:2505.09388): no shared expert."""

from __future__ import annotations

import dataclasses

from ..spec import Layer, QkNorm, Spec
from ._experts import experts, mixed, names, number, router, sparse_layers
from ._family import BEFORE, QK_NORMS, Family
from ._fields import Fields
from ._parts import attention, count, decoder, dense, head_width, rms
from ._rope import read_rope
from .llama import NAMES as LLAMA


def read(f: Fields) -> Spec:
    """Windows, if they are on, are in all layers. Released files set `norm_topk_prob`."""
    width, norm, mlp = head_width(f), rms(f), dense(f)
    biased = f.get("attention_bias", bool, False)
    f.read |= {"sliding_window", "max_window_layers"}
    on = f.get("use_sliding_window", bool, False)
    mixer = attention(
        f, width, read_rope(f, width), kv_heads=4, qkv_bias=biased, out_bias=biased,
        qk_norm=QkNorm(norm), window=f.get("sliding_window", int, 4096) if on else None,
    )  # fmt: skip
    chooses = router(f, chosen=8, normalized=f.get("norm_topk_prob", bool, False))
    inner = f.get("moe_intermediate_size", int, 768)
    mixture = experts(f, number(f, 128), chooses, mlp, inner)
    layers = mixed(Layer(mixer, mlp, norm), mixture, sparse_layers(f, count(f)))
    return decoder(f, layers, norm)


NAMES = dataclasses.replace(LLAMA, norms=BEFORE | QK_NORMS, experts=names())
FAMILY = Family(
    "qwen3_moe",
    read,
    NAMES,
    classifier="Qwen3MoeForSequenceClassification",
    checkpoints="Qwen3-30B-A3B and 235B-A22B, Qwen3-Coder",
)
