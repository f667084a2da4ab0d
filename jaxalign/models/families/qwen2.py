"""Qwen2 and Qwen2.5 (Yang et al. 2024, arXiv:2407.10671): Llama with biases on q, k and v."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import UserError
from ..spec import Layer, Softmax, Spec
from ._family import Family
from ._fields import Fields
from ._parts import (
    KINDS,
    Kind,
    attention,
    count,
    decoder,
    dense,
    head_width,
    layer_kinds,
    rms,
    windowed,
)
from ._rope import read_rope
from .llama import NAMES


def read(f: Fields) -> Spec:
    """The form of Llama, with windows in the layers after the first, if they are on."""
    width, norm = head_width(f), rms(f)
    mixer = attention(f, width, read_rope(f, width), qkv_bias=True)
    mlp = dense(f)
    return decoder(f, [Layer(a, mlp, norm) for a in windows(f, mixer)], norm)


def windows(f: Fields, mixer: Softmax) -> Sequence[Softmax]:
    """The attention of each layer: from `max_window_layers` on with a window, if windows are on.

    Raises:
      UserError: `layer_types` names windows that `use_sliding_window` turns off.
    """
    first = f.get("max_window_layers", int, 28)
    size = f.get("sliding_window", int, 4096)
    on, n = f.get("use_sliding_window", bool, False), count(f)
    late: list[Kind] = [KINDS[on and i >= first] for i in range(n)]
    kinds = layer_kinds(f, late)
    if not on and "sliding_attention" in kinds:
        raise UserError(
            f"{f.where}: layer_types has sliding_attention, and use_sliding_window is false; "
            "make them agree"
        )
    return windowed(mixer, kinds, size)


FAMILY = Family(
    "qwen2",
    read,
    NAMES,
    classifier="Qwen2ForSequenceClassification",
    checkpoints="Qwen1.5, 2 and 2.5, 0.5B to 72B; QwQ",
)
