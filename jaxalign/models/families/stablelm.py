"""StableLM 2 (Bellagente et al. 2024, arXiv:2402.17834): layer norms, rotated quarters of heads."""

from __future__ import annotations

import dataclasses

from ..spec import Layer, NormKind, QkNorm, Spec
from ._family import BEFORE, Family
from ._fields import Fields
from ._parts import attention, count, decoder, dense, head_width
from ._rope import read_rope
from .llama import NAMES as LLAMA


def read(f: Fields) -> Spec:
    """Sequential or, with one norm, parallel; queries and keys may have norms without biases."""
    width = head_width(f)
    norm = NormKind(f.get("layer_norm_eps", float, 1e-5), centered=True, bias=True)
    rope = read_rope(f, width, partial=0.25, any_partial=True)
    own = QkNorm(dataclasses.replace(norm, bias=False), over="own head")
    mixer = attention(
        f, width, rope, qkv_bias=f.get("use_qkv_bias", bool, False),
        qk_norm=own if f.get("qk_layernorm", bool, False) else None,
    )  # fmt: skip
    parallel = "one norm" if f.get("use_parallel_residual", bool, False) else "no"
    return decoder(f, [Layer(mixer, dense(f), norm, parallel=parallel)] * count(f), norm)


QK_NORMS = {
    ("attention", "query_norm"): "self_attn.q_layernorm.norms.{}",
    ("attention", "key_norm"): "self_attn.k_layernorm.norms.{}",
}
NAMES = dataclasses.replace(LLAMA, norms=BEFORE | QK_NORMS)
FAMILY = Family(
    "stablelm",
    read,
    NAMES,
    classifier="StableLmForSequenceClassification",
    checkpoints="StableLM 3B, StableLM 2 1.6B and 12B",
)
