"""Decoders of gated delta nets and gated attention: Qwen3-Next and Qwen3.5."""

from __future__ import annotations

from ...errors import UserError
from ..spec import Delta, NormKind, QkNorm, Softmax
from ._family import BEFORE, QK_NORMS
from ._fields import Fields
from ._parts import activation, attention, count, layer_kinds, rms
from ._rope import read_rope

MROPE = ("mrope_section", "mrope_interleaved")
"""Rotary settings of images; the three positions of a token of text are the same."""
NORMS = BEFORE | QK_NORMS | {("delta", "norm"): "linear_attn.norm"}
OTHERS = {
    ("delta", "gates", "log_rate"): "linear_attn.A_log",
    ("delta", "gates", "step"): "linear_attn.dt_bias",
    ("delta", "query_conv", "taps"): "linear_attn.conv1d.weight",
    ("delta", "key_conv", "taps"): "linear_attn.conv1d.weight",
    ("delta", "value_conv", "taps"): "linear_attn.conv1d.weight",
}
ATTENTION = {
    ("attention", "query"): "self_attn.q_proj",
    ("attention", "out_gate"): "self_attn.q_proj",
    ("attention", "key"): "self_attn.k_proj",
    ("attention", "value"): "self_attn.v_proj",
    ("attention", "out"): "self_attn.o_proj",
    ("delta", "out"): "linear_attn.out_proj",
}
FLAT = {
    ("delta", "query"): "linear_attn.in_proj_qkv",
    ("delta", "key"): "linear_attn.in_proj_qkv",
    ("delta", "value"): "linear_attn.in_proj_qkv",
    ("delta", "out_gate"): "linear_attn.in_proj_z",
    ("delta", "gates", "beta"): "linear_attn.in_proj_b",
    ("delta", "gates", "decay"): "linear_attn.in_proj_a",
}
"""The linear layers of a delta net in Qwen3.5."""
GROUPED = {"self_attn.q_proj": "heads"}
UNUSED = ("mtp.",)
"""Layers that predict further tokens; transformers does not read them either."""
TOWER = {
    "embed": "model.language_model.embed_tokens",
    "layer": "model.language_model.layers.{}.",
    "norm": "model.language_model.norm",
    "copied": ("model.visual.",),
}
"""The names that a model of text and images has in place of the names of a decoder alone."""
IMAGES = frozenset(
    {
        *("vision_config", "image_token_id", "video_token_id"),
        *("vision_start_token_id", "vision_end_token_id"),
    }
)
"""The settings of the other parts of such a model."""


def mixers(f: Fields, kv_heads: int) -> list[Softmax | Delta]:
    """The attention of each layer: every fourth is softmax attention, the others are delta nets.

    `kv_heads` is the number of key heads if the file gives none.
    """
    # Of the layers that predict further tokens, and of the dtype of states in other programs.
    f.read |= {key for key in f.raw if key.startswith("mtp_")} | {"mamba_ssm_dtype"}
    f.read.add("attn_output_gate")  # transformers does not read it either
    width, biased = f.get("head_dim", int, 256), f.get("attention_bias", bool, False)
    rope = read_rope(f, width, partial=0.25, any_partial=True, unused=MROPE)
    softmax = attention(
        f, width, rope, kv_heads=kv_heads, qkv_bias=biased,
        out_bias=biased, qk_norm=QkNorm(rms(f, scale="1 + w")), gate=True,
    )  # fmt: skip
    delta = _delta(f)
    period = f.get("full_attention_interval", int, 4)
    kinds = ("full_attention", "linear_attention")
    default = [kinds[(i + 1) % period != 0] for i in range(count(f))]
    found = layer_kinds(f, default, kinds)
    return [softmax if kind == "full_attention" else delta for kind in found]


def _delta(f: Fields) -> Delta:
    keys = f.get("linear_num_key_heads", int, 16)
    values = f.get("linear_num_value_heads", int, 32)
    if values % keys:
        raise UserError(
            f"{f.where}: linear_num_value_heads {values} is not a multiple of "
            f"linear_num_key_heads {keys}; restore the original file"
        )
    return Delta(
        key_heads=keys,
        value_heads=values,
        key_width=f.get("linear_key_head_dim", int, 128),
        value_width=f.get("linear_value_head_dim", int, 128),
        taps=f.get("linear_conv_kernel_dim", int, 4),
        activation=activation(f),
        norm=NormKind(rms(f).eps),
    )
