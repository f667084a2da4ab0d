"""OLMoE (Muennighoff et al. 2024, arXiv:2409.02060): OLMo with experts and norms of q and k."""

from __future__ import annotations

import dataclasses

from ..spec import Layer, QkNorm, Spec
from ._experts import experts, names, number, router
from ._family import BEFORE, QK_NORMS, Family
from ._fields import Fields
from ._parts import attention, count, decoder, dense, head_width, rms
from ._rope import read_rope
from .llama import NAMES as LLAMA


def read(f: Fields) -> Spec:
    """Queries and keys are normalized over all heads together, then limited."""
    width, norm, mlp = head_width(f), rms(f, 1e-5), dense(f)
    biased = f.get("attention_bias", bool, False)
    mixer = attention(
        f, width, read_rope(f, width), qkv_bias=biased, out_bias=biased,
        qk_norm=QkNorm(norm, over="projection"), clip=f.get("clip_qkv", float, None),
    )  # fmt: skip
    chooses = router(f, chosen=8, normalized=f.get("norm_topk_prob", bool, False))
    mixture = experts(f, number(f, 64), chooses, mlp, mlp.width)
    return decoder(f, [Layer(mixer, mixture, norm)] * count(f), norm)


NAMES = dataclasses.replace(LLAMA, norms=BEFORE | QK_NORMS, experts=names())
FAMILY = Family("olmoe", read, NAMES, classifier=None, checkpoints="OLMoE 1B-7B")
