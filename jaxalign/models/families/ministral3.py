"""Ministral 3 (Mistral AI 2025): Mistral with YaRN, and queries that grow with their positions."""

from __future__ import annotations

from ..spec import Layer, Spec
from ._family import Family
from ._fields import Fields
from ._parts import attention, count, decoder, dense, head_width, rms
from ._rope import read_growing_rope
from .llama import NAMES

ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1_000_000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16_384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
"""The rotary settings of a file without any."""


def read(f: Fields) -> Spec:
    """Heads of 128 that need not fill the width; one window for all layers, if any."""
    width, norm = head_width(f, None if "head_dim" in f.raw else 128), rms(f, 1e-5)
    f.get("layer_types", list, None)  # transformers does not read it either
    rope = read_growing_rope(f, width, ROPE)
    mixer = attention(f, width, rope, kv_heads=8, window=f.get("sliding_window", int, None))
    return decoder(f, [Layer(mixer, dense(f), norm)] * count(f), norm)


FAMILY = Family(
    "ministral3",
    read,
    NAMES,
    classifier="Ministral3ForSequenceClassification",
    checkpoints="the text part of Ministral 3, saved alone",
)
