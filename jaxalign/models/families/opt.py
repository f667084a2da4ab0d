"""OPT (Zhang et al. 2022, arXiv:2205.01068): learned positions from row 2 on."""

from __future__ import annotations

from ...errors import UserError
from ..spec import Layer, LearnedPositions, NormKind, Spec
from ._family import Family, WeightNames
from ._fields import Fields
from ._parts import attention, count, decoder, dense, head_width

OFFSET = 2
"""Row of position 0."""


def read(f: Fields) -> Spec:
    """Layer norms on the inputs of both parts; they and the linear layers may lack parameters.

    Raises:
      UserError: the norms are on sums, as in OPT-350M, or the embedding has another width.
    """
    f.names = {"intermediate_size": "ffn_dim"}
    f.read |= {"dropout", "activation_dropout", "layerdrop", "init_std"}
    f.read.add("prefix")  # of generation; the tokenizer adds it
    if not f.get("do_layer_norm_before", bool, True):
        raise UserError(
            f"{f.where}: do_layer_norm_before = False is not implemented; choose another size"
        )
    narrow = f.get("word_embed_proj_dim", int, None)
    if narrow not in (None, f.get("hidden_size", int)):
        raise UserError(
            f"{f.where}: word_embed_proj_dim {narrow} is not hidden_size, which is not "
            "implemented; choose another size"
        )
    affine = f.get("layer_norm_elementwise_affine", bool, True)
    norm = NormKind(1e-5, centered=True, scale="w" if affine else "none", bias=affine)
    biased = f.get("enable_bias", bool, True)
    mixer = attention(f, head_width(f), None, qkv_bias=biased, out_bias=biased)
    mlp = dense(f, "relu", key="activation_function", gated=False, bias=biased)
    rows = f.get("max_position_embeddings", int) + OFFSET
    return decoder(
        f, [Layer(mixer, mlp, norm)] * count(f), norm, tied=True,
        positions=LearnedPositions(rows, first=OFFSET),
    )  # fmt: skip


FAMILY = Family(
    "opt",
    read,
    WeightNames(
        embed="model.decoder.embed_tokens",
        positions="model.decoder.embed_positions",
        layer="model.decoder.layers.{}.",
        linears={
            ("attention", "query"): "self_attn.q_proj",
            ("attention", "key"): "self_attn.k_proj",
            ("attention", "value"): "self_attn.v_proj",
            ("attention", "out"): "self_attn.out_proj",
            ("mlp", "up"): "fc1",
            ("mlp", "down"): "fc2",
        },
        norms={("attention_norm",): "self_attn_layer_norm", ("mlp_norm",): "final_layer_norm"},
        norm="model.decoder.final_layer_norm",
        head="lm_head",
        spellings={"decoder.": "model.decoder."},
    ),
    classifier="OPTForSequenceClassification",
    checkpoints="OPT 125M to 66B",
)
