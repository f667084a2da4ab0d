"""Command R (Cohere 2024): both parts of a layer read one layer norm without bias."""

from __future__ import annotations

import dataclasses

from ..spec import Layer, NormKind, QkNorm, Spec
from ._family import BEFORE, QK_NORMS, Family
from ._fields import Fields
from ._parts import attention, count, decoder, dense, head_width
from ._rope import read_rope
from .llama import NAMES as LLAMA


def read(f: Fields) -> Spec:
    """Neighboring dimensions are rotated together; queries and keys may have norms."""
    width, norm = head_width(f), layer_norm(f)
    biased = f.get("attention_bias", bool, False)
    qk_norm = QkNorm(norm, over="own head") if f.get("use_qk_norm", bool, False) else None
    rope = read_rope(f, width, theta=500_000.0, interleaved=True)
    mixer = attention(f, width, rope, qkv_bias=biased, out_bias=biased, qk_norm=qk_norm)
    layer = Layer(mixer, dense(f), norm, parallel="one norm")
    return decoder(f, [layer] * count(f), norm, tied=True, logit_scale=logit_scale(f))


def layer_norm(f: Fields) -> NormKind:
    """Layer norm without bias."""
    return NormKind(f.get("layer_norm_eps", float, 1e-5), centered=True)


def logit_scale(f: Fields) -> float:
    """The factor of the logits."""
    return f.get("logit_scale", float, 0.0625)


NAMES = dataclasses.replace(LLAMA, norms=BEFORE | QK_NORMS)
FAMILY = Family(
    "cohere", read, NAMES, classifier=None, checkpoints="Command R and R+, Aya 23, Aya Expanse"
)
