"""StableLM 2 (Bellagente et al. 2024, arXiv:2402.17834): layer norms, rotated quarters of heads."""

from __future__ import annotations

from ..spec import Layer, NormKind, Spec
from ._family import Family
from ._fields import Fields
from ._parts import attention, count, decoder, dense, head_width
from ._rope import read_rope
from .llama import NAMES


def read(f: Fields) -> Spec:
    """Sequential or, with one norm, parallel. Norms of queries and keys are not implemented."""
    width = head_width(f)
    norm = NormKind(f.get("layer_norm_eps", float, 1e-5), centered=True, bias=True)
    rope = read_rope(f, width, partial=0.25, any_partial=True)
    mixer = attention(f, width, rope, qkv_bias=f.get("use_qkv_bias", bool, False))
    parallel = "one norm" if f.get("use_parallel_residual", bool, False) else "no"
    return decoder(f, [Layer(mixer, dense(f), norm, parallel=parallel)] * count(f), norm)


FAMILY = Family(
    "stablelm",
    read,
    NAMES,
    classifier="StableLmForSequenceClassification",
    checkpoints="StableLM 3B, StableLM 2 1.6B",
    refused="StableLM 2 12B, for its norms of queries and keys",
)
