"""GLM-4 (GLM Team 2024, arXiv:2406.12793), the checkpoints of 2025: norms around both parts."""

from __future__ import annotations

import dataclasses

from ..spec import Layer, Spec
from ._family import Family
from ._fields import Fields
from ._parts import attention, count, decoder, dense, head_width, rms
from ._rope import read_rope
from .llama import NAMES as LLAMA


def read(f: Fields) -> Spec:
    """Half of each head is rotated, neighboring dimensions together."""
    width, norm = head_width(f, 128), rms(f, 1.5625e-7)
    rope = read_rope(f, width, partial=0.5, any_partial=True, interleaved=True)
    biased = f.get("attention_bias", bool, True)
    mixer = attention(f, width, rope, kv_heads=2, qkv_bias=biased)
    return decoder(f, [Layer(mixer, dense(f), norm, places="around")] * count(f), norm)


NAMES = dataclasses.replace(
    LLAMA,
    linears={**LLAMA.linears}
    | {("mlp", "gate"): "mlp.gate_up_proj", ("mlp", "up"): "mlp.gate_up_proj"},
    norms={
        ("attention_norm",): "input_layernorm",
        ("attention_out_norm",): "post_self_attn_layernorm",
        ("mlp_norm",): "post_attention_layernorm",
        ("mlp_out_norm",): "post_mlp_layernorm",
    },
)
FAMILY = Family(
    "glm4",
    read,
    NAMES,
    classifier="Glm4ForSequenceClassification",
    checkpoints="GLM-4 and GLM-Z1 of April 2025, 9B and 32B",
)
