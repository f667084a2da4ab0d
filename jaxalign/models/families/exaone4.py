"""EXAONE 4 (LG AI Research 2025, arXiv:2507.11407): norms on outputs."""

from __future__ import annotations

import dataclasses

from ..spec import Layer, QkNorm, Spec
from ._family import AFTER, QK_NORMS, Family
from ._fields import Fields
from ._parts import (
    KINDS,
    Kind,
    attention,
    count,
    decoder,
    dense,
    every,
    head_width,
    layer_kinds,
    rms,
)
from ._rope import read_rope
from .llama import NAMES


def read(f: Fields) -> Spec:
    """Full layers have no positions, except in models without windows."""
    width, norm = head_width(f), rms(f, 1e-5)
    rope = read_rope(f, width)
    f.read.add("sliding_window_pattern")  # next to `layer_types` it says nothing
    window = f.nullable("sliding_window", int, 4096)
    kinds = layer_kinds(f, _pattern(f) if window else [KINDS[0] for _ in range(count(f))])
    mixer = attention(f, width, rope, qk_norm=QkNorm(norm))
    full = dataclasses.replace(mixer, rope=None) if window else mixer
    sliding, mlp = dataclasses.replace(mixer, window=window), dense(f)
    layers = [
        Layer(sliding if kind == "sliding_attention" else full, mlp, norm, places="after")
        for kind in kinds
    ]
    return decoder(f, layers, norm)


def _pattern(f: Fields) -> list[Kind]:
    """The kinds of layers by `sliding_window_pattern`: LLLG, or the period of full layers."""
    given = f.raw.get("sliding_window_pattern")
    if isinstance(given, str) and given:
        return [KINDS[given[i % len(given)] == "L"] for i in range(count(f))]
    return every(f.get("sliding_window_pattern", int, 4), count(f))


FAMILY = Family(
    "exaone4",
    read,
    dataclasses.replace(NAMES, norms=AFTER | QK_NORMS),
    classifier="Exaone4ForSequenceClassification",
    checkpoints="EXAONE 4.0 1.2B and 32B",
)
