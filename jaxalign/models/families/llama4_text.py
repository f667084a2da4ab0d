"""The text part of Llama 4 (Meta 2025): chunks of positions, and one expert for each token."""

from __future__ import annotations

import dataclasses

from ..spec import Layer, NormKind, QkNorm, Rope, Spec
from ._experts import experts, number, router
from ._family import ExpertNames, Family
from ._fields import Fields
from ._parts import attention, count, decoder, dense, head_width, rms, rotated_layers
from ._rope import read_rope
from .llama import NAMES as LLAMA


def read(f: Fields) -> Spec:
    """Layers with rotation attend in chunks; in the others queries grow with their positions."""
    width, norm, layers = head_width(f, 128), rms(f, 1e-5), count(f)
    biased = f.get("attention_bias", bool, False)
    rope = read_rope(f, width, theta=500_000.0, interleaved=True)
    mixer = attention(f, width, rope, kv_heads=8, qkv_bias=biased, out_bias=biased)
    unit = QkNorm(NormKind(norm.eps, scale="none"), after_rope=True)
    rotated = dataclasses.replace(
        mixer,
        chunk=f.nullable("attention_chunk_size", int, 8192),
        qk_norm=unit if f.get("use_qk_norm", bool, True) else None,
    )
    plain = dataclasses.replace(mixer, rope=_growing(f))

    mlp = dense(f)
    wide = dataclasses.replace(mlp, width=f.get("intermediate_size_mlp", int, 16_384))
    chooses = router(f, chosen=1, score="sigmoid")
    mixture = experts(f, number(f, 16), chooses, mlp, mlp.width, shared=mlp, scales_input=True)
    sparse = _sparse(f, layers)
    return decoder(
        f,
        [
            Layer(rotated if r else plain, mixture if i in sparse else wide, norm)
            for i, r in enumerate(rotated_layers(f))
        ],
        norm,
    )


def _growing(f: Fields) -> Rope | None:
    """No rotation, and queries with a factor of 1 + 0.1 log(1 + floor((p + 1) / 8192))."""
    slope, step = f.get("attn_scale", float, 0.1), f.get("floor_scale", int, 8192)
    f.read.add("attn_temperature_tuning")  # true, or 4 in published files
    if not f.raw.get("attn_temperature_tuning", True):
        return None
    return Rope((), query_slope=slope, query_step=step, query_first=1)


def _sparse(f: Fields, layers: int) -> set[int]:
    """The numbers of the layers that have experts."""
    step = f.get("interleave_moe_layer_step", int, 1)
    given = f.get("moe_layers", list, None)
    f.read.add("layer_types")  # the layers in chunks are those with rotation
    return set(range(step - 1, layers, step) if given is None else given)


NAMES = dataclasses.replace(
    LLAMA,
    linears={path: name.replace("mlp.", "feed_forward.") for path, name in LLAMA.linears.items()},
    experts=(
        ExpertNames(
            {
                ("mlp", "router", "kernel"): "feed_forward.router.weight",
                ("mlp", "gate", "kernel"): "feed_forward.experts.gate_up_proj",
                ("mlp", "up", "kernel"): "feed_forward.experts.gate_up_proj",
                ("mlp", "down", "kernel"): "feed_forward.experts.down_proj",
                **{
                    (
                        "mlp",
                        "shared",
                        part,
                        "kernel",
                    ): f"feed_forward.shared_expert.{part}_proj.weight"
                    for part in ("gate", "up", "down")
                },
            },
            transposed=False,
        ),
    ),
)
FAMILY = Family(
    "llama4_text",
    read,
    NAMES,
    classifier=None,
    checkpoints="the text part of Llama 4 Scout and Maverick, saved alone",
)
