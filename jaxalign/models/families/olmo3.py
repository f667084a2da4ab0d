"""OLMo 3 (OLMo Team 2025): OLMo 2 with windows, and a rotary embedding for each kind of layer."""

from __future__ import annotations

import dataclasses

from ..spec import Layer, QkNorm, Spec
from ._family import Family
from ._fields import Fields
from ._parts import attention, count, decoder, dense, every, head_width, layer_kinds, rms
from ._rope import read_ropes
from .olmo2 import NAMES


def read(f: Fields) -> Spec:
    """Every fourth layer has full attention."""
    width, norm = head_width(f), rms(f, 1e-5)
    biased = f.get("attention_bias", bool, False)
    ropes = read_ropes(f, width, full=500_000.0, sliding=500_000.0)
    mixer = attention(
        f, width, None, qkv_bias=biased, out_bias=biased,
        qk_norm=QkNorm(norm, over="projection"),
    )  # fmt: skip
    window = f.get("sliding_window", int, 4096)
    mlp, layers = dense(f), []
    for kind in layer_kinds(f, every(4, count(f))):
        size = window if kind == "sliding_attention" else None
        own = dataclasses.replace(mixer, rope=ropes[kind], window=size)
        layers.append(Layer(own, mlp, norm, places="after"))
    return decoder(f, layers, norm)


FAMILY = Family(
    "olmo3",
    read,
    NAMES,
    classifier="Olmo3ForSequenceClassification",
    checkpoints="Olmo 3 7B and 32B",
)
