"""Qwen3.5 (Qwen Team 2026), text only: three gated delta nets to a layer of gated attention."""

from __future__ import annotations

import dataclasses

from ..spec import Layer, Spec
from ._delta import ATTENTION, FLAT, GROUPED, NORMS, OTHERS, UNUSED, mixers
from ._family import Family
from ._fields import Fields
from ._parts import decoder, dense, rms
from .llama import NAMES as LLAMA


def read(f: Fields) -> Spec:
    """A rotated quarter of each head of the attention."""
    mlp, norm = dense(f), rms(f, scale="1 + w")
    return decoder(f, [Layer(mixer, mlp, norm) for mixer in mixers(f, 4)], norm)


NAMES = dataclasses.replace(
    LLAMA,
    norms=NORMS,
    others=OTHERS,
    linears={**LLAMA.linears, **ATTENTION, **FLAT},
    grouped=GROUPED,
    unused=UNUSED,
)
FAMILY = Family(
    "qwen3_5_text",
    read,
    NAMES,
    classifier="Qwen3_5TextForSequenceClassification",
    checkpoints="the text part of dense Qwen3.5, saved alone",
)
