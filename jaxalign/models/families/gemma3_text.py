"""Gemma 3 (Gemma Team 2025, arXiv:2503.19786), text only: windows, two rotary embeddings."""

from __future__ import annotations

import dataclasses

from ..spec import Layer, QkNorm, Spec
from ._family import AROUND, QK_NORMS, Family
from ._fields import Fields
from ._parts import attention, count, decoder, dense, every, head_width, layer_kinds, rms
from ._rope import read_ropes
from .gemma import embed_scale
from .gemma2 import NAMES as GEMMA2


def read(f: Fields) -> Spec:
    """Every sixth layer has full attention."""
    width, norm = head_width(f, 256), rms(f, scale="1 + w")
    biased = f.get("attention_bias", bool, False)
    f.get("attn_logit_softcapping", float, None)  # transformers does not apply it either
    ropes = read_ropes(f, width, full=1_000_000.0, sliding=10_000.0)
    mixer = attention(
        f, width, None, kv_heads=4, qkv_bias=biased, out_bias=biased, qk_norm=QkNorm(norm),
        scale=f.get("query_pre_attn_scalar", float, 256.0) ** -0.5,
    )  # fmt: skip
    window = f.get("sliding_window", int, 4096)
    mlp = dense(f, "gelu_pytorch_tanh", key="hidden_activation")
    pattern = f.get("sliding_window_pattern", int, 6)
    f.get("_sliding_window_pattern", int, pattern)
    layers = []
    for kind in layer_kinds(f, every(pattern, count(f))):
        size = window if kind == "sliding_attention" else None
        own = dataclasses.replace(mixer, rope=ropes[kind], window=size)
        layers.append(Layer(own, mlp, norm, places="around"))
    cap = f.get("final_logit_softcapping", float, None)
    scale = embed_scale(f)
    return decoder(f, layers, norm, tied=True, embed_scale=scale, logit_softcap=cap)


NAMES = dataclasses.replace(GEMMA2, norms=AROUND | QK_NORMS)
FAMILY = Family(
    "gemma3_text",
    read,
    NAMES,
    classifier="Gemma3TextForSequenceClassification",
    checkpoints="Gemma 3 270M and 1B, and the text part of the larger ones",
)
