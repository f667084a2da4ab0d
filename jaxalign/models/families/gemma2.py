"""Gemma 2 (Gemma Team 2024, arXiv:2408.00118): norms around both parts, windows, soft caps."""

from __future__ import annotations

import dataclasses

from ..spec import Layer, Spec
from ._family import AROUND, Family
from ._fields import Fields
from ._parts import KINDS, attention, count, decoder, dense, head_width, layer_kinds, rms, windowed
from ._rope import read_rope
from .gemma import embed_scale
from .llama import NAMES as LLAMA


def read(f: Fields) -> Spec:
    """Every second layer has full attention; scores and logits are capped."""
    width, norm = head_width(f, 256), rms(f, scale="1 + w")
    biased = f.get("attention_bias", bool, False)
    f.read |= {"hidden_act", "sliding_window_size"}  # transformers does not read them either
    mixer = attention(
        f, width, read_rope(f, width), kv_heads=4, qkv_bias=biased, out_bias=biased,
        scale=f.get("query_pre_attn_scalar", float, 256.0) ** -0.5,
        softcap=f.nullable("attn_logit_softcapping", float, 50.0),
    )  # fmt: skip
    mlp = dense(f, "gelu_pytorch_tanh", key="hidden_activation")
    kinds = layer_kinds(f, [KINDS[i % 2 == 0] for i in range(count(f))])
    mixers = windowed(mixer, kinds, f.get("sliding_window", int, 4096))
    return decoder(
        f, [Layer(a, mlp, norm, places="around") for a in mixers], norm, tied=True,
        embed_scale=embed_scale(f),
        logit_softcap=f.nullable("final_logit_softcapping", float, 30.0),
    )  # fmt: skip


NAMES = dataclasses.replace(LLAMA, norms=AROUND)
FAMILY = Family(
    "gemma2",
    read,
    NAMES,
    classifier="Gemma2ForSequenceClassification",
    checkpoints="Gemma 2 2B to 27B",
)
