"""Command R7B and A (Cohere 2024, 2025): Command R with windows; full layers have no positions."""

from __future__ import annotations

import dataclasses

from ...errors import UserError
from ..spec import Layer, Spec
from ._family import Family
from ._fields import Fields
from ._parts import attention, count, decoder, dense, every, head_width, layer_kinds
from ._rope import read_rope
from .cohere import NAMES, layer_norm, logit_scale


def read(f: Fields) -> Spec:
    """Three layers with a window and positions, then one with neither.

    Raises:
      UserError: `head_dim` is not the width over the heads, which transformers takes.
    """
    norm, heads = layer_norm(f), f.get("num_attention_heads", int)
    width = head_width(f)
    if width * heads != f.get("hidden_size", int):
        raise UserError(
            f"{f.where}: head_dim {width} times num_attention_heads {heads} is not hidden_size, "
            "which transformers takes it for; remove head_dim"
        )
    biased = f.get("attention_bias", bool, False)
    rope = read_rope(f, width, interleaved=True)
    full = attention(f, width, None, qkv_bias=biased, out_bias=biased)
    sliding = dataclasses.replace(full, rope=rope, window=f.get("sliding_window", int, 4096))
    for key in ("order_of_interleaved_layers", "position_embedding_type", "rotary_pct"):
        f.read.add(key)  # of another program, for the same layers
    f.read |= {"use_gated_activation", "use_parallel_block", "use_embedding_sharing"}
    f.read |= {"use_parallel_embedding", "layer_switch"}
    pattern = f.get("sliding_window_pattern", int, 4)
    f.get("_sliding_window_pattern", int, pattern)
    kinds, mlp = layer_kinds(f, every(pattern, count(f))), dense(f)
    layers = [
        Layer(sliding if kind == "sliding_attention" else full, mlp, norm, parallel="one norm")
        for kind in kinds
    ]
    return decoder(f, layers, norm, tied=True, logit_scale=logit_scale(f))


FAMILY = Family("cohere2", read, NAMES, classifier=None, checkpoints="Command R7B, Command A")
