"""Seed-OSS (ByteDance 2025): Llama with a bias for each group of linear layers."""

from __future__ import annotations

from ..spec import Layer, Spec
from ._family import Family
from ._fields import Fields
from ._parts import attention, count, decoder, dense, head_width, rms
from ._rope import read_rope
from .llama import NAMES


def read(f: Fields) -> Spec:
    """Heads of 128 that need not fill the width."""
    width, norm = head_width(f, 128), rms(f)
    mixer = attention(
        f, width, read_rope(f, width), kv_heads=8,
        qkv_bias=f.get("attention_bias", bool, True),
        out_bias=f.get("attention_out_bias", bool, False),
    )  # fmt: skip
    mlp = dense(f, bias=f.get("mlp_bias", bool, False))
    return decoder(f, [Layer(mixer, mlp, norm)] * count(f), norm)


FAMILY = Family(
    "seed_oss",
    read,
    NAMES,
    classifier="SeedOssForSequenceClassification",
    checkpoints="Seed-OSS 36B",
)
