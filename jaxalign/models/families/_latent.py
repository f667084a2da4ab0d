"""Latent attention, as DeepSeek's families read it from `config.json` and name its weights."""

from __future__ import annotations

import dataclasses
import math

from ..spec import Latent, NormKind
from ._experts import names
from ._family import BEFORE
from ._fields import Fields
from ._rope import read_rope, settings
from .llama import NAMES as LLAMA


def latent(f: Fields, *, interleaved: bool) -> Latent:
    """Latent attention; with scaled rotary frequencies its scores have a further factor."""
    plain, rotated = f.get("qk_nope_head_dim", int, 128), f.get("qk_rope_head_dim", int, 64)
    f.read |= {"num_key_value_heads", "head_dim", "qk_head_dim"}  # of no meaning here
    return Latent(
        heads=f.get("num_attention_heads", int),
        rank=f.get("kv_lora_rank", int, 512),
        query_rank=f.nullable("q_lora_rank", int, 1536),
        plain_width=plain,
        rope_width=rotated,
        value_width=f.get("v_head_dim", int, 128),
        scale=(plain + rotated) ** -0.5 * _factor(f),
        rope=read_rope(f, rotated, interleaved=interleaved),
        norm=NormKind(1e-6),  # whatever `rms_norm_eps` says
        bias=f.get("attention_bias", bool, False),
    )


def _factor(f: Fields) -> float:
    """(0.1 m log s + 1)^2 for `mscale_all_dim` m and the factor s of the frequencies."""
    given = settings(f)
    if given.get("rope_type", "default") == "default" or given.get("factor", 1) <= 1:
        return 1.0
    return (0.1 * given.get("mscale_all_dim", 0.0) * math.log(given["factor"]) + 1) ** 2


NORMS = BEFORE | {
    ("attention", "query_norm"): "self_attn.q_a_layernorm",
    ("attention", "latent_norm"): "self_attn.kv_a_layernorm",
}


NAMES = dataclasses.replace(
    LLAMA,
    norms=NORMS,
    linears={
        ("attention", "query"): "self_attn.q_proj",
        ("attention", "query_down"): "self_attn.q_a_proj",
        ("attention", "query_up"): "self_attn.q_b_proj",
        ("attention", "latent"): "self_attn.kv_a_proj_with_mqa",
        ("attention", "up"): "self_attn.kv_b_proj",
        ("attention", "out"): "self_attn.o_proj",
        **{path: name for path, name in LLAMA.linears.items() if path[0] == "mlp"},
    },
    experts=names(shared="mlp.shared_experts"),
    more_layers=True,
)
