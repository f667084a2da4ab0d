"""GPT-NeoX (Black et al. 2022, arXiv:2204.06745) and Pythia (Biderman et al. 2023, 2304.01373)."""

from __future__ import annotations

from ..spec import Layer, NormKind, Spec
from ._family import Family, WeightNames
from ._fields import Fields
from ._parts import attention, count, decoder, dense, head_width
from ._rope import read_rope


def read(f: Fields) -> Spec:
    """Layer norms with biases, and a rotated quarter of each head."""
    biased = f.get("attention_bias", bool, True)
    width = head_width(f)
    older = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
    rope = read_rope(f, width, partial=0.25, any_partial=True, older=older)
    norm = NormKind(f.get("layer_norm_eps", float, 1e-5), centered=True, bias=True)
    layer = Layer(
        attention(f, width, rope, qkv_bias=biased, out_bias=biased),
        dense(f, "gelu", gated=False, bias=True),
        norm,
        parallel="own norms" if f.get("use_parallel_residual", bool, True) else "no",
    )
    return decoder(f, [layer] * count(f), norm)


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
        grouped={"attention.query_key_value": "heads"},
        norm="gpt_neox.final_layer_norm",
        head="embed_out",
        other_heads=("lm_head",),
        buffers=("rotary_emb.inv_freq", "attention.bias", "attention.masked_bias"),
    ),
    classifier="GPTNeoXForSequenceClassification",
    checkpoints="GPT-NeoX 20B, Pythia 14M to 12B",
)
