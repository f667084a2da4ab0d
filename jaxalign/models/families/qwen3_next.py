"""Qwen3-Next (Qwen Team 2025): gated delta nets, gated attention and experts."""

from __future__ import annotations

import dataclasses

from ..spec import Layer, Spec
from ._delta import ATTENTION, GROUPED, NORMS, OTHERS, UNUSED, mixers
from ._experts import experts, names, number, router, sparse_layers
from ._family import Family
from ._fields import Fields
from ._parts import count, decoder, dense, rms
from .llama import NAMES as LLAMA


def read(f: Fields) -> Spec:
    """A shared expert with a gate; some layers may be dense."""
    mlp, norm = dense(f), rms(f, scale="1 + w")
    inner = f.get("moe_intermediate_size", int, 512)
    always = dataclasses.replace(mlp, width=f.get("shared_expert_intermediate_size", int, 512))
    chooses = router(f, chosen=10, normalized=f.get("norm_topk_prob", bool, True))
    total = number(f, 512)
    mixture = experts(f, total, chooses, mlp, inner, shared=always, shared_gate=True)
    layers = zip(mixers(f, 2), sparse_layers(f, count(f)), strict=True)
    return decoder(f, [Layer(m, mixture if s else mlp, norm) for m, s in layers], norm)


QKVZ, BA = "linear_attn.in_proj_qkvz", "linear_attn.in_proj_ba"
NAMES = dataclasses.replace(
    LLAMA,
    norms=NORMS,
    others=OTHERS,
    linears={
        **LLAMA.linears,
        **ATTENTION,
        ("delta", "query"): QKVZ,
        ("delta", "key"): QKVZ,
        ("delta", "value"): QKVZ,
        ("delta", "out_gate"): QKVZ,
        ("delta", "gates", "beta"): BA,
        ("delta", "gates", "decay"): BA,
    },
    grouped=GROUPED | {QKVZ: "key_heads", BA: "key_heads"},
    unused=UNUSED,
    experts=names(shared="mlp.shared_expert"),
)
FAMILY = Family(
    "qwen3_next",
    read,
    NAMES,
    classifier="Qwen3NextForSequenceClassification",
    checkpoints="Qwen3-Next-80B-A3B",
)
