"""ERNIE 4.5 (Baidu 2025), the dense checkpoints: Llama that rotates neighboring dimensions."""

from __future__ import annotations

from ..spec import Layer, Spec
from ._family import Family
from ._fields import Fields
from ._parts import attention, count, decoder, dense, head_width, rms
from ._rope import read_rope
from .llama import NAMES


def read(f: Fields) -> Spec:
    """`use_bias` gives all linear layers biases."""
    width, norm = head_width(f, 128), rms(f, 1e-5)
    biased = f.get("use_bias", bool, False)
    rope = read_rope(f, width, theta=500_000.0, interleaved=True)
    mixer = attention(f, width, rope, kv_heads=2, qkv_bias=biased, out_bias=biased)
    return decoder(f, [Layer(mixer, dense(f, bias=biased), norm)] * count(f), norm, tied=True)


FAMILY = Family("ernie4_5", read, NAMES, classifier=None, checkpoints="ERNIE 4.5 0.3B")
