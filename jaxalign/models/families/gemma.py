"""Gemma (Gemma Team 2024, arXiv:2403.08295)."""

from __future__ import annotations

import dataclasses
import math

from ..spec import Layer, Spec
from ._family import Family
from ._fields import Fields
from ._parts import attention, count, decoder, dense, head_width, rms
from ._rope import read_rope
from .llama import NAMES


def read(f: Fields) -> Spec:
    """Norms that multiply by 1 + w, embeddings times the root of the width, tied."""
    width, norm = head_width(f, 256), rms(f, scale="1 + w")
    biased = f.get("attention_bias", bool, False)
    f.get("hidden_activation", str, None)  # transformers does not read it either
    mlp = dense(f, "gelu_pytorch_tanh")
    if mlp.activation == "gelu":  # files say gelu and mean its approximation
        mlp = dataclasses.replace(mlp, activation="gelu_tanh")
    mixer = attention(f, width, read_rope(f, width), kv_heads=16, qkv_bias=biased, out_bias=biased)
    layers = [Layer(mixer, mlp, norm)] * count(f)
    return decoder(f, layers, norm, tied=True, embed_scale=embed_scale(f))


def embed_scale(f: Fields) -> float:
    """The factor of the embeddings, the square root of the width."""
    return math.sqrt(f.get("hidden_size", int))


FAMILY = Family(
    "gemma",
    read,
    NAMES,
    classifier="GemmaForSequenceClassification",
    checkpoints="Gemma 2B and 7B, CodeGemma",
)
