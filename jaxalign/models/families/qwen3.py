"""Qwen3 (Yang et al. 2025, arXiv:2505.09388): Qwen2 with norms of queries and keys, no biases."""

from __future__ import annotations

import dataclasses

from ..spec import Layer, QkNorm, Spec
from ._family import BEFORE, QK_NORMS, Family
from ._fields import Fields
from ._parts import attention, decoder, dense, head_width, rms
from ._rope import read_rope
from .llama import NAMES
from .qwen2 import windows


def read(f: Fields) -> Spec:
    """Heads of 128 that need not fill the width, and one norm weight for all heads."""
    width, norm = head_width(f, 128), rms(f)
    biased = f.get("attention_bias", bool, False)
    mixer = attention(
        f, width, read_rope(f, width), qkv_bias=biased, out_bias=biased, qk_norm=QkNorm(norm)
    )
    mlp = dense(f)
    return decoder(f, [Layer(a, mlp, norm) for a in windows(f, mixer)], norm)


FAMILY = Family(
    "qwen3",
    read,
    dataclasses.replace(NAMES, norms=BEFORE | QK_NORMS),
    classifier="Qwen3ForSequenceClassification",
    checkpoints="Qwen3 0.6B to 32B",
)
