"""Phi-3 and Phi-4 (Abdin et al. 2024, arXiv:2404.14219, 2412.08905): Llama in fused matrices."""

from __future__ import annotations

import dataclasses

from ..spec import Layer, Spec
from ._family import Family
from ._fields import Fields
from ._parts import attention, count, decoder, dense, head_width, rms
from ._rope import read_rope
from .llama import NAMES as LLAMA


def read(f: Fields) -> Spec:
    """One window for all layers, if any; a part of each head may be rotated."""
    width, norm = head_width(f), rms(f, 1e-5)
    rope = read_rope(f, width, any_partial=True, original=4096)
    f.read |= {"full_attn_mod", "interpolate_factor"}  # transformers does not read them either
    mixer = attention(f, width, rope, window=f.get("sliding_window", int, None))
    return decoder(f, [Layer(mixer, dense(f), norm)] * count(f), norm)


NAMES = dataclasses.replace(
    LLAMA,
    linears={
        ("attention", "query"): "self_attn.qkv_proj",
        ("attention", "key"): "self_attn.qkv_proj",
        ("attention", "value"): "self_attn.qkv_proj",
        ("attention", "out"): "self_attn.o_proj",
        ("mlp", "gate"): "mlp.gate_up_proj",
        ("mlp", "up"): "mlp.gate_up_proj",
        ("mlp", "down"): "mlp.down_proj",
    },
)
FAMILY = Family(
    "phi3",
    read,
    NAMES,
    classifier="Phi3ForSequenceClassification",
    checkpoints="Phi-3 and 3.5 mini and medium, Phi-4, Phi-4-mini",
)
