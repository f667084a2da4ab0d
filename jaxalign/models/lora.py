"""Low-rank adapters beside the matrices of a layer: y = x W + scale (x A) B.

Hu et al. 2021, arXiv:2106.09685, section 4.1; the rank-stabilized scale is that of Kalajdzievski
2023, arXiv:2312.03732. A starts as in PEFT, uniform within 1 / sqrt(in), and B at zero, so that
an adapted layer starts as the layer it was. There is no dropout.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from .layers.block import Block, Linear

ATTENTION_INPUTS = (("attention", "query"), ("attention", "key"), ("attention", "value"))


@dataclasses.dataclass(frozen=True)
class LowRank:
    """Which linear layers of a block have adapters, and of what kind."""

    rank: int
    alpha: float
    rank_stabilized: bool
    targets: tuple[tuple[str, str], ...]
    """Linear layers by their path in a block: ("mlp", "up")."""
    fused: bool
    """Query, key and value share one A, as an adapter of their fused matrix does in PEFT."""

    @property
    def scale(self) -> float:
        """What (x A) B is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


def attach(block: Block, low_rank: LowRank, rngs: nnx.Rngs) -> None:
    """Put adapters beside the linear layers of a block, in float32 whatever the block is in.

    A [in, rank] lies on the mesh like the rows of its matrix, B [rank, out] like the columns.
    """

    def down(linear: Linear) -> nnx.Param:
        into = linear.kernel.shape[0]
        bound = 1 / math.sqrt(into)
        value = jax.random.uniform(
            rngs.params(), (into, low_rank.rank), minval=-bound, maxval=bound
        )
        return nnx.Param(value, out_sharding=(axes(linear)[0], "rank"))

    def axes(linear: Linear) -> tuple[str, str]:
        return linear.kernel.get_metadata("out_sharding")

    block.attention.lora_scale = low_rank.scale
    for path in low_rank.targets:
        linear: Linear = getattr(getattr(block, path[0]), path[1])
        linear.lora_scale = low_rank.scale
        if not (low_rank.fused and path in ATTENTION_INPUTS):
            linear.lora_a = down(linear)
        zeros = jnp.zeros((low_rank.rank, linear.kernel.shape[1]))
        linear.lora_b = nnx.Param(zeros, out_sharding=("rank", axes(linear)[1]))
    if low_rank.fused and ATTENTION_INPUTS[0] in low_rank.targets:
        block.attention.lora_a = down(block.attention.query)
