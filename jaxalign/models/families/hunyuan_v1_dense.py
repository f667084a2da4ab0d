"""Hunyuan dense (Tencent 2025): Llama with norms of rotated queries and keys."""

from __future__ import annotations

import dataclasses

from ..spec import Layer, QkNorm, Spec
from ._family import BEFORE, Family
from ._fields import Fields
from ._parts import attention, count, decoder, dense, rms
from ._rope import read_rope
from .llama import NAMES


def read(f: Fields) -> Spec:
    """The norms come after the rotation; `alpha` raises the base of the frequencies."""
    width, norm = f.get("head_dim", int), rms(f, 1e-5)
    biased = f.get("attention_bias", bool, False)
    f.read |= {"use_qk_norm", "eod_token_id"}  # transformers does not read them either
    mixer = attention(
        f, width, read_rope(f, width), qkv_bias=biased, out_bias=biased,
        qk_norm=QkNorm(norm, after_rope=True),
    )  # fmt: skip
    return decoder(f, [Layer(mixer, dense(f), norm)] * count(f), norm)


FAMILY = Family(
    "hunyuan_v1_dense",
    read,
    dataclasses.replace(
        NAMES,
        norms=BEFORE
        | {
            ("attention", "query_norm"): "self_attn.query_layernorm",
            ("attention", "key_norm"): "self_attn.key_layernorm",
        },
    ),
    classifier="HunYuanDenseV1ForSequenceClassification",
)
