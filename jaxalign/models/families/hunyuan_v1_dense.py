"""Hunyuan dense (Tencent 2025): Llama with norms of rotated queries and keys."""

from __future__ import annotations

import dataclasses

from ..spec import Layer, QkNorm, Spec
from ._family import BEFORE, Family
from ._fields import Fields
from ._parts import attention, count, decoder, dense, rms
from ._rope import read_rope
from .llama import NAMES

UNUSED = {
    *("use_qk_norm", "norm_type", "use_rotary_pos_emb", "attention_head_dim", "cla_share_factor"),
    *("dense_list", "org_vocab_size", "pool_type", "pad_id", "eod_token_id", "mask_init_id"),
    *("im_start_id", "im_end_id", "im_newline_id", "text_start_id", "text_end_id"),
}
"""Keys of the published files that transformers does not read."""


def read(f: Fields) -> Spec:
    """The norms come after the rotation; `alpha` raises the base of the frequencies."""
    width, norm = f.get("head_dim", int), rms(f, 1e-5)
    biased = f.get("attention_bias", bool, False)
    f.read |= UNUSED
    mixer = attention(
        f, width, read_rope(f, width), qkv_bias=biased, out_bias=biased,
        qk_norm=QkNorm(norm, after_rope=True),
    )  # fmt: skip
    return decoder(f, [Layer(mixer, dense(f), norm)] * count(f), norm)


FAMILY = Family(
    "hunyuan_v1_dense",
    read,
    dataclasses.replace(
        NAMES,
        norms=BEFORE
        | {
            ("attention", "query_norm"): "self_attn.query_layernorm",
            ("attention", "key_norm"): "self_attn.key_layernorm",
        },
    ),
    classifier="HunYuanDenseV1ForSequenceClassification",
    checkpoints="Hunyuan 0.5B to 7B, Hunyuan-MT 7B",
)
