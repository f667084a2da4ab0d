"""OLMo 2 (OLMo Team 2024, arXiv:2501.00656): norms on outputs, and of whole queries and keys."""

from __future__ import annotations

import dataclasses

from ..spec import Layer, QkNorm, Spec
from ._family import AFTER, QK_NORMS, Family
from ._fields import Fields
from ._parts import attention, count, decoder, dense, head_width, rms
from ._rope import read_rope
from .llama import NAMES as LLAMA


def read(f: Fields) -> Spec:
    """Both parts read the residual stream as it is."""
    width, norm = head_width(f), rms(f, 1e-5)
    biased = f.get("attention_bias", bool, False)
    qk_norm = QkNorm(norm, over="projection")
    mixer = attention(
        f, width, read_rope(f, width), qkv_bias=biased, out_bias=biased, qk_norm=qk_norm
    )
    return decoder(f, [Layer(mixer, dense(f), norm, places="after")] * count(f), norm)


NAMES = dataclasses.replace(LLAMA, norms=AFTER | QK_NORMS)
FAMILY = Family(
    "olmo2",
    read,
    NAMES,
    classifier="Olmo2ForSequenceClassification",
    checkpoints="OLMo 2 1B to 32B",
)
