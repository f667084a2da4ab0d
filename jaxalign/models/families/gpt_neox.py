"""GPT-NeoX (Black et al. 2022, arXiv:2204.06745) and Pythia (Biderman et al. 2023, 2304.01373)."""

from __future__ import annotations

from ..spec import Spec
from ._family import Family, WeightNames
from ._fields import Fields, activation, checked, head_width
from ._rope import read_rope


def read(f: Fields) -> Spec:
    """Layer norms with biases, and a rotated quarter of each head."""
    biased = f.get("attention_bias", bool, True)
    width = head_width(f)
    return checked(
        f,
        kv_heads=f.get("num_attention_heads", int),
        head_width=width,
        norm="layer",
        norm_eps=f.get("layer_norm_eps", float, 1e-5),
        activation=activation(f, "gelu"),
        rope=read_rope(
            f,
            width,
            partial=0.25,
            older={"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
        ),
        gated=False,
        qkv_bias=biased,
        out_bias=biased,
        mlp_bias=True,
        parallel_residual=f.get("use_parallel_residual", bool, True),
    )


FAMILY = Family(
    "gpt_neox",
    read,
    WeightNames(
        embed="gpt_neox.embed_in",
        layer="gpt_neox.layers.{}.",
        linears={
            ("attention", "query"): "attention.query_key_value",
            ("attention", "key"): "attention.query_key_value",
            ("attention", "value"): "attention.query_key_value",
            ("attention", "out"): "attention.dense",
            ("mlp", "up"): "mlp.dense_h_to_4h",
            ("mlp", "down"): "mlp.dense_4h_to_h",
        },
        norm="gpt_neox.final_layer_norm",
        head="embed_out",
        other_heads=("lm_head",),
        buffers=("rotary_emb.inv_freq", "attention.bias", "attention.masked_bias"),
    ),
    classifier="GPTNeoXForSequenceClassification",
)
