"""SmolLM3 (Hugging Face 2025): Llama without positions in every fourth layer."""

from __future__ import annotations

import dataclasses

from ..spec import Layer, Spec
from ._family import Family
from ._fields import Fields
from ._parts import KINDS, attention, decoder, dense, head_width, layer_kinds, rms, rotated_layers
from ._rope import read_rope
from .llama import NAMES


def read(f: Fields) -> Spec:
    """`no_rope_layers` is 1 where there are positions; windows, if on, are in the other layers."""
    width, norm = head_width(f), rms(f)
    biased = f.get("attention_bias", bool, False)
    rope = read_rope(f, width, theta=2_000_000.0)
    mixer = attention(f, width, rope, kv_heads=4, qkv_bias=biased, out_bias=biased)
    mlp = dense(f, bias=f.get("mlp_bias", bool, False))
    turned = rotated_layers(f)
    on, window = f.get("use_sliding_window", bool, False), f.get("sliding_window", int, None)
    kinds = layer_kinds(f, [KINDS[on and window is not None and not flag] for flag in turned])
    layers = []
    for kind, flag in zip(kinds, turned, strict=True):
        size = window if kind == "sliding_attention" else None
        own = dataclasses.replace(mixer, rope=rope if flag else None, window=size)
        layers.append(Layer(own, mlp, norm))
    return decoder(f, layers, norm, tied=True)


FAMILY = Family(
    "smollm3", read, NAMES, classifier="SmolLM3ForSequenceClassification", checkpoints="SmolLM3 3B"
)
