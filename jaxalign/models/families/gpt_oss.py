"""gpt-oss (OpenAI 2025, arXiv:2508.10925): sinks, windows, experts with biases and limits."""

from __future__ import annotations

import dataclasses

from ...errors import UserError
from ..spec import Dense, Layer, Spec
from ._experts import experts, number, router
from ._family import ExpertNames, Family
from ._fields import Fields
from ._parts import KINDS, attention, count, decoder, head_width, layer_kinds, rms, windowed
from ._rope import read_rope
from .llama import NAMES as LLAMA

YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
"""The rotary settings of a file that gives none."""


def read(f: Fields) -> Spec:
    """Every second layer has a window; experts compute (up + 1) gate sigmoid(1.702 gate)."""
    width, norm = head_width(f, 64), rms(f, 1e-5)
    biased = f.get("attention_bias", bool, True)
    f.read |= {"experts_per_token", "initial_context_length"}  # transformers does not read them
    rope = read_rope(f, width, theta=150_000.0, absent=YARN)
    mixer = attention(f, width, rope, qkv_bias=biased, out_bias=biased, sinks=True)
    kinds = layer_kinds(f, [KINDS[i % 2 == 0] for i in range(count(f))])
    mixers = windowed(mixer, kinds, f.get("sliding_window", int, 128))
    mlp = _expert(f)
    chooses = router(f, chosen=4, score="softmax of the chosen", bias=True)
    mixture = experts(f, number(f, 128), chooses, mlp, mlp.width)
    return decoder(f, [Layer(a, mixture, norm) for a in mixers], norm)


def _expert(f: Fields) -> Dense:
    for key, wanted in {"hidden_act": "silu", "swiglu_alpha": 1.702}.items():
        if f.get(key, type(wanted), wanted) != wanted:
            raise UserError(f"{f.where}: {key} {f.raw[key]} is not implemented; wanted {wanted}")
    inner, limit = f.get("intermediate_size", int), f.get("swiglu_limit", float, 7.0)
    return Dense(inner, "gelu_sigmoid", bias=True, limit=limit, offset=1.0)


FUSED, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
NAMES = dataclasses.replace(
    LLAMA,
    experts=(
        ExpertNames(
            {
                ("mlp", "router", "kernel"): "mlp.router.weight",
                ("mlp", "router", "bias"): "mlp.router.bias",
                ("mlp", "gate", "kernel"): FUSED,
                ("mlp", "up", "kernel"): FUSED,
                ("mlp", "down", "kernel"): DOWN,
                ("mlp", "gate", "bias"): f"{FUSED}_bias",
                ("mlp", "up", "bias"): f"{FUSED}_bias",
                ("mlp", "down", "bias"): f"{DOWN}_bias",
            },
            transposed=False,
            interleaved=True,
        ),
    ),
    others={("attention", "sinks"): "self_attn.sinks"},
)
FAMILY = Family(
    "gpt_oss",
    read,
    NAMES,
    classifier="GptOssForSequenceClassification",
    quantized=("mxfp4",),
    checkpoints="gpt-oss 20B and 120B",
)
