"""Ministral (Mistral AI 2024): Mistral with windows in some layers."""

from __future__ import annotations

from ..spec import Layer, Spec
from ._family import Family
from ._fields import Fields
from ._parts import KINDS, attention, count, decoder, dense, head_width, layer_kinds, rms, windowed
from ._rope import read_rope
from .llama import NAMES


def read(f: Fields) -> Spec:
    """Windows where `layer_types` has them, or in all layers."""
    width, norm = head_width(f), rms(f)
    window = f.nullable("sliding_window", int, 4096)
    mixer = attention(f, width, read_rope(f, width), kv_heads=8)
    kinds = layer_kinds(f, [KINDS[1] for _ in range(count(f))])
    mlp = dense(f)
    return decoder(f, [Layer(a, mlp, norm) for a in windowed(mixer, kinds, window)], norm)


FAMILY = Family(
    "ministral",
    read,
    NAMES,
    classifier="MinistralForSequenceClassification",
    checkpoints="Ministral 8B of 2024, saved with its windows",
)
