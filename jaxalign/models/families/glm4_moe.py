"""GLM-4.5 to 4.7 (GLM Team 2025, arXiv:2508.06471): a shared expert, the first layers dense."""

from __future__ import annotations

import dataclasses

from ..spec import Layer, QkNorm, Spec
from ._experts import corrected, experts, mixed, names, number
from ._family import BEFORE, QK_NORMS, Family
from ._fields import Fields
from ._parts import attention, count, decoder, dense, head_width, rms
from ._rope import read_rope
from .llama import NAMES as LLAMA


def read(f: Fields) -> Spec:
    """Half of each head is rotated; norms of queries and keys where the file asks for them."""
    width, norm, mlp = head_width(f), rms(f, 1e-5), dense(f)
    qk_norm = QkNorm(norm) if f.get("use_qk_norm", bool, False) else None
    mixer = attention(
        f, width, read_rope(f, width, partial=0.5, any_partial=True), kv_heads=8,
        qkv_bias=f.get("attention_bias", bool, False), qk_norm=qk_norm,
    )  # fmt: skip
    inner = f.get("moe_intermediate_size", int, 1408)
    always = dataclasses.replace(mlp, width=inner * f.get("n_shared_experts", int, 1))
    total = number(f, 128)
    mixture = experts(f, total, corrected(f), mlp, inner, shared=always)
    first = f.number("first_k_dense_replace", 1)
    sparse = [i >= first for i in range(count(f))]
    f.read |= {"num_nextn_predict_layers", "num_mtp_layers"}  # layers after the last, not read
    return decoder(f, mixed(Layer(mixer, mlp, norm), mixture, sparse), norm)


NAMES = dataclasses.replace(
    LLAMA, norms=BEFORE | QK_NORMS, experts=names(shared="mlp.shared_experts"), more_layers=True
)
FAMILY = Family(
    "glm4_moe", read, NAMES, classifier=None, checkpoints="GLM-4.5, 4.6 and 4.7, GLM-4.5-Air"
)
