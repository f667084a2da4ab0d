"""LFM2 (Liquid AI 2025, arXiv:2511.23404): gated short convolutions among layers of attention."""

from __future__ import annotations

from ..spec import Dense, Layer, NormKind, QkNorm, ShortConv, Spec
from ._family import Family, WeightNames
from ._fields import Fields
from ._parts import attention, count, decoder, head_width, layer_kinds
from ._rope import read_rope

KINDS = ("full_attention", "conv")


def read(f: Fields) -> Spec:
    """Layers of the older `full_attn_idxs` have attention, or all if there is neither key."""
    norm, width = NormKind(f.get("norm_eps", float, 1e-5)), head_width(f)
    f.read.add("theta")  # transformers does not read it either
    softmax = attention(
        f, width, read_rope(f, width, theta=1_000_000.0), kv_heads=8, qk_norm=QkNorm(norm)
    )
    conv = ShortConv(f.get("conv_L_cache", int, 3), f.get("conv_bias", bool, False))
    full = f.get("full_attn_idxs", list, range(count(f)))
    kinds = layer_kinds(f, [KINDS[i not in full] for i in range(count(f))], KINDS)
    mlp = Dense(_mlp_width(f), "silu")
    layers = [Layer(softmax if kind == KINDS[0] else conv, mlp, norm) for kind in kinds]
    return decoder(f, layers, norm, tied=f.get("tie_embedding", bool, True))


def _mlp_width(f: Fields) -> int:
    """Two thirds of the given width, times a factor, rounded up; or the given width."""
    width = f.get("block_ff_dim", int, None) or f.get("intermediate_size", int)
    unit, factor = f.get("block_multiple_of", int, 256), f.get("block_ffn_dim_multiplier", float, 1)
    f.read |= {"intermediate_size", "block_dim"}
    if not f.get("block_auto_adjust_ff_dim", bool, True):
        return width
    return unit * -(-int(factor * int(2 * width / 3)) // unit)


NAMES = WeightNames(
    embed="model.embed_tokens",
    layer="model.layers.{}.",
    linears={
        ("attention", "query"): "self_attn.q_proj",
        ("attention", "key"): "self_attn.k_proj",
        ("attention", "value"): "self_attn.v_proj",
        ("attention", "out"): "self_attn.out_proj",
        ("conv", "in_gate"): "conv.in_proj",
        ("conv", "out_gate"): "conv.in_proj",
        ("conv", "value"): "conv.in_proj",
        ("conv", "out"): "conv.out_proj",
        ("mlp", "gate"): "feed_forward.w1",
        ("mlp", "up"): "feed_forward.w3",
        ("mlp", "down"): "feed_forward.w2",
    },
    norms={
        ("attention_norm",): "operator_norm",
        ("mlp_norm",): "ffn_norm",
        ("attention", "query_norm"): "self_attn.q_layernorm",
        ("attention", "key_norm"): "self_attn.k_layernorm",
    },
    others={
        ("conv", "conv", "taps"): "conv.conv.weight",
        ("conv", "conv", "bias"): "conv.conv.bias",
    },
    norm="model.embedding_norm",
    head="lm_head",
)
FAMILY = Family("lfm2", read, NAMES, classifier=None, checkpoints="LFM2 350M to 2.6B")
