"""Llama (Touvron et al. 2023, arXiv:2302.13971), up to Llama 3.2, and models of the same form."""

from __future__ import annotations

from ..spec import Spec
from ._family import Family, WeightNames
from ._fields import Fields, activation, checked, head_width
from ._rope import read_rope


def read(f: Fields) -> Spec:
    """Root-mean-square norms and a gated feed-forward; biases only if the file asks for them."""
    biased = f.get("attention_bias", bool, False)
    mlp_bias = f.get("mlp_bias", bool, False)
    return read_gated_rms(f, qkv_bias=biased, out_bias=biased, mlp_bias=mlp_bias)


def read_gated_rms(f: Fields, *, qkv_bias: bool, out_bias: bool, mlp_bias: bool) -> Spec:
    """The form of Llama, with given biases."""
    kv_heads = f.get("num_key_value_heads", int, f.get("num_attention_heads", int))
    width = f.get("head_dim", int, None) or head_width(f)
    return checked(
        f,
        kv_heads=kv_heads,
        head_width=width,
        norm="rms",
        norm_eps=f.get("rms_norm_eps", float, 1e-6),
        activation=activation(f, "silu"),
        rope=read_rope(f, width),
        gated=True,
        parallel_residual=False,
        qkv_bias=qkv_bias,
        out_bias=out_bias,
        mlp_bias=mlp_bias,
    )


NAMES = WeightNames(
    embed="model.embed_tokens",
    layer="model.layers.{}.",
    linears={
        ("attention", "query"): "self_attn.q_proj",
        ("attention", "key"): "self_attn.k_proj",
        ("attention", "value"): "self_attn.v_proj",
        ("attention", "out"): "self_attn.o_proj",
        ("mlp", "gate"): "mlp.gate_proj",
        ("mlp", "up"): "mlp.up_proj",
        ("mlp", "down"): "mlp.down_proj",
    },
    norm="model.norm",
    head="lm_head",
)
FAMILY = Family("llama", read, NAMES, classifier="LlamaForSequenceClassification")
