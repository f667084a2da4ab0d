"""Mistral (Jiang et al. 2023, arXiv:2310.06825): Llama with one window for all layers."""

from __future__ import annotations

from ..spec import Layer, Spec
from ._family import Family
from ._fields import Fields
from ._parts import attention, count, decoder, dense, head_width, rms
from ._rope import read_rope
from .llama import NAMES


def read(f: Fields) -> Spec:
    """A window of 4096 if the file gives none, and no window if it gives null."""
    width, norm = head_width(f), rms(f)
    window = f.nullable("sliding_window", int, 4096)
    f.get("layer_types", list, None)  # transformers does not read it either
    mixer = attention(f, width, read_rope(f, width), kv_heads=8, window=window)
    return decoder(f, [Layer(mixer, dense(f), norm)] * count(f), norm)


FAMILY = Family(
    "mistral",
    read,
    NAMES,
    classifier="MistralForSequenceClassification",
    checkpoints="Mistral 7B, Nemo 12B, Small 22B and 24B (text)",
)
