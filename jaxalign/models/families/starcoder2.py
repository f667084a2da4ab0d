"""StarCoder2 (Lozhkov et al. 2024, arXiv:2402.19173): layer norms, biases, no gate."""

from __future__ import annotations

import dataclasses

from ..spec import Layer, NormKind, Spec
from ._family import Family
from ._fields import Fields
from ._parts import attention, count, decoder, dense, head_width
from ._rope import read_rope
from .llama import NAMES as LLAMA


def read(f: Fields) -> Spec:
    """One window for all layers, if any."""
    width, biased = head_width(f), f.get("use_bias", bool, True)
    norm = NormKind(f.get("norm_epsilon", float, 1e-5), centered=True, bias=True)
    f.read |= {"mlp_type", "norm_type"}  # of another program, for the same layers
    mixer = attention(
        f, width, read_rope(f, width), kv_heads=2, qkv_bias=biased, out_bias=biased,
        window=f.get("sliding_window", int, None),
    )  # fmt: skip
    mlp = dense(f, "gelu_pytorch_tanh", gated=False, bias=biased)
    return decoder(f, [Layer(mixer, mlp, norm)] * count(f), norm, tied=True)


ATTENTION = {path: name for path, name in LLAMA.linears.items() if path[0] == "attention"}
NAMES = dataclasses.replace(
    LLAMA,
    linears=ATTENTION | {("mlp", "up"): "mlp.c_fc", ("mlp", "down"): "mlp.c_proj"},
)
FAMILY = Family(
    "starcoder2",
    read,
    NAMES,
    classifier="Starcoder2ForSequenceClassification",
    checkpoints="StarCoder2 3B to 15B",
)
