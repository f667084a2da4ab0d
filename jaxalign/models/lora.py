"""Low-rank adapters of the matrices of a layer: y = x W + scale (x A) B.

Hu et al. 2021, arXiv:2106.09685, section 4.1; the rank-stabilized scale is by Kalajdzievski
2023, arXiv:2312.03732. A is initialized as in PEFT, uniform within 1 / sqrt(in), and B with zeros,
so an adapted layer first computes the same as the layer without adapters. There is no dropout.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from .layers.block import Block
from .layers.projections import Linear

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
    """Query, key and value share one A, as in a PEFT adapter of their fused matrix."""

    @property
    def scale(self) -> float:
        """Factor of (x A) B."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


def attach(block: Block, low_rank: LowRank, rngs: nnx.Rngs) -> None:
    """Give the linear layers of a block adapters, in float32 whatever the dtype of the block.

    A [in, rank] is sharded like the rows of its matrix, B [rank, out] like the columns.
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
