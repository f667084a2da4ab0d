"""OLMo (Groeneveld et al. 2024, arXiv:2402.00838): layer norms without parameters."""

from __future__ import annotations

import dataclasses

from ..spec import Layer, NormKind, Spec
from ._family import Family
from ._fields import Fields
from ._parts import attention, count, decoder, dense, head_width
from ._rope import read_rope
from .llama import NAMES

NORM = NormKind(1e-5, centered=True, scale="none")


def read(f: Fields) -> Spec:
    """Queries, keys and values may be clipped."""
    width = head_width(f)
    biased = f.get("attention_bias", bool, False)
    clip = f.get("clip_qkv", float, None)
    mixer = attention(f, width, read_rope(f, width), qkv_bias=biased, out_bias=biased, clip=clip)
    return decoder(f, [Layer(mixer, dense(f), NORM)] * count(f), NORM)


FAMILY = Family(
    "olmo",
    read,
    dataclasses.replace(NAMES, norms={}),
    classifier="OlmoForSequenceClassification",
    checkpoints="OLMo 1B and 7B",
)
