"""Qwen2 and Qwen2.5 (Yang et al. 2024, arXiv:2407.10671): Llama with biases on q, k and v."""

from __future__ import annotations

from ...errors import UserError
from ..spec import Spec
from ._family import Family
from ._fields import Fields
from .llama import NAMES, read_gated_rms


def read(f: Fields) -> Spec:
    """The form of Llama; refuses sliding windows.

    Raises:
      UserError: a layer has a sliding window.
    """
    used = f.get("use_sliding_window", bool, False)
    f.get("sliding_window", int, None)
    other = set(f.get("layer_types", list, [])) - {"full_attention"}
    if used or other:
        raise UserError(
            f"{f.where}: use_sliding_window: sliding-window attention is not implemented; "
            "choose a checkpoint with full attention"
        )
    return read_gated_rms(f, qkv_bias=True, out_bias=False, mlp_bias=False)


FAMILY = Family("qwen2", read, NAMES, classifier="Qwen2ForSequenceClassification")
