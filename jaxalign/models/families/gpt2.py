"""GPT-2 (Radford et al. 2019): learned positions, and matrices stored as [in, out]."""

from __future__ import annotations

import dataclasses

from ..spec import Layer, LearnedPositions, NormKind, Spec
from ._family import Family, WeightNames
from ._fields import Fields
from ._parts import attention, count, decoder, dense, head_width

OWN_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "intermediate_size": "n_inner",
}


def read(f: Fields) -> Spec:
    """Scores may lack the factor 1 / sqrt(head width), or be divided by the number of the layer."""
    f.names = OWN_NAMES
    f.read |= {"n_ctx", "summary_activation", "summary_first_dropout", "summary_proj_to_labels"}
    f.read |= {"summary_type", "summary_use_proj"}
    f.read.add("reorder_and_upcast_attn")  # scores are float32 anyway
    norm = NormKind(f.get("layer_norm_epsilon", float, 1e-5), centered=True, bias=True)
    width = head_width(f)
    scale = width**-0.5 if f.get("scale_attn_weights", bool, True) else 1.0
    mixer = attention(f, width, None, qkv_bias=True, out_bias=True, scale=scale)
    mlp = dense(
        f, "gelu_new", key="activation_function", gated=False, bias=True,
        width=4 * f.get("hidden_size", int),
    )  # fmt: skip
    divided = f.get("scale_attn_by_inverse_layer_idx", bool, False)
    layers = [
        Layer(dataclasses.replace(mixer, scale=scale / (i + 1 if divided else 1)), mlp, norm)
        for i in range(count(f))
    ]
    positions = LearnedPositions(f.get("max_position_embeddings", int))
    return decoder(f, layers, norm, tied=True, positions=positions)


FAMILY = Family(
    "gpt2",
    read,
    WeightNames(
        embed="transformer.wte",
        positions="transformer.wpe",
        layer="transformer.h.{}.",
        linears={
            ("attention", "query"): "attn.c_attn",
            ("attention", "key"): "attn.c_attn",
            ("attention", "value"): "attn.c_attn",
            ("attention", "out"): "attn.c_proj",
            ("mlp", "up"): "mlp.c_fc",
            ("mlp", "down"): "mlp.c_proj",
        },
        matrices="[in, out]",
        norms={("attention_norm",): "ln_1", ("mlp_norm",): "ln_2"},
        norm="transformer.ln_f",
        head="lm_head",
        buffers=(".attn.bias", ".attn.masked_bias"),
        spellings={name: f"transformer.{name}" for name in ("wte.", "wpe.", "h.", "ln_f.")},
    ),
    classifier="GPT2ForSequenceClassification",
    checkpoints="GPT-2 124M to 1.5B",
)
