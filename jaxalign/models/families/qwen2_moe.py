"""Qwen1.5-MoE and Qwen2-MoE (Yang et al. 2024, arXiv:2407.10671): a shared expert with a gate."""

from __future__ import annotations

import dataclasses

from ..spec import Layer, Spec
from ._experts import experts, names, number, router, sparse_layers
from ._family import Family
from ._fields import Fields
from ._parts import KINDS, attention, count, decoder, dense, head_width, layer_kinds, rms, windowed
from ._rope import read_rope
from .llama import NAMES as LLAMA


def read(f: Fields) -> Spec:
    """Windows, if they are on, are in every second of the first `max_window_layers` layers."""
    width, norm, mlp, layers = head_width(f), rms(f), dense(f), count(f)
    biased = f.get("qkv_bias", bool, True)
    mixer = attention(f, width, read_rope(f, width), kv_heads=16, qkv_bias=biased)
    inner = f.get("moe_intermediate_size", int, 1408)
    always = dataclasses.replace(mlp, width=f.get("shared_expert_intermediate_size", int, 5632))
    chooses = router(f, chosen=4, normalized=f.get("norm_topk_prob", bool, False))
    total = number(f, 60)
    mixture = experts(f, total, chooses, mlp, inner, shared=always, shared_gate=True)

    first, on = f.get("max_window_layers", int, 28), f.get("use_sliding_window", bool, False)
    f.read.add("sliding_window")  # 0 if windows are off
    window = f.get("sliding_window", int, 4096) if on else None
    kinds = layer_kinds(f, [KINDS[on and i % 2 == 0 and i < first] for i in range(layers)])
    mixers = windowed(mixer, kinds, window)
    sparse = sparse_layers(f, layers)
    return decoder(
        f,
        [Layer(a, mixture if s else mlp, norm) for a, s in zip(mixers, sparse, strict=True)],
        norm,
    )


NAMES = dataclasses.replace(LLAMA, experts=names(shared="mlp.shared_expert"))
FAMILY = Family(
    "qwen2_moe",
    read,
    NAMES,
    classifier="Qwen2MoeForSequenceClassification",
    checkpoints="Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B",
)
