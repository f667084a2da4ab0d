"""Granite 3 (IBM 2024): Llama with four multipliers."""

from __future__ import annotations

from ..spec import Layer, Spec
from ._family import Family
from ._fields import Fields
from ._parts import attention, count, decoder, dense, head_width, rms
from ._rope import read_rope
from .llama import NAMES


def read(f: Fields) -> Spec:
    """`attention_multiplier` replaces 1 / sqrt(head width)."""
    width, norm = head_width(f), rms(f)
    biased = f.get("attention_bias", bool, False)
    mixer = attention(
        f, width, read_rope(f, width), qkv_bias=biased, out_bias=biased,
        scale=f.get("attention_multiplier", float, 1.0),
    )  # fmt: skip
    mlp = dense(f, bias=f.get("mlp_bias", bool, False))
    layer = Layer(mixer, mlp, norm, residual_scale=f.get("residual_multiplier", float, 1.0))
    return decoder(
        f, [layer] * count(f), norm,
        embed_scale=f.get("embedding_multiplier", float, 1.0),
        logit_scale=1 / f.get("logits_scaling", float, 1.0),
    )  # fmt: skip


FAMILY = Family(
    "granite", read, NAMES, classifier=None, checkpoints="Granite 3.0 to 3.3, 2B and 8B"
)
