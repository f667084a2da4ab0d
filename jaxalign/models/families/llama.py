"""Llama (Touvron et al. 2023, arXiv:2302.13971), up to Llama 3.2, and models of the same form."""

from __future__ import annotations

from ..spec import Layer, Spec
from ._family import Family, WeightNames
from ._fields import Fields
from ._parts import attention, count, decoder, dense, head_width, rms
from ._rope import read_rope


def read(f: Fields) -> Spec:
    """Root-mean-square norms and a gated feed-forward; biases only if the file asks for them."""
    width, norm = head_width(f), rms(f)
    biased = f.get("attention_bias", bool, False)
    mixer = attention(f, width, read_rope(f, width), qkv_bias=biased, out_bias=biased)
    mlp = dense(f, bias=f.get("mlp_bias", bool, False))
    return decoder(f, [Layer(mixer, mlp, norm)] * count(f), norm)


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
FAMILY = Family(
    "llama",
    read,
    NAMES,
    classifier="LlamaForSequenceClassification",
    checkpoints="Llama 1 to 3.3 (text), SmolLM 1 and 2, TinyLlama, and others of its form",
)
