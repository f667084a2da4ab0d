"""Low-rank adapters of the matrices of a layer: y = x W + scale (x A) B.

Hu et al. 2021, arXiv:2106.09685, section 4.1; the rank-stabilized scale is by Kalajdzievski
2023, arXiv:2312.03732. A is initialized as in PEFT, uniform within 1 / sqrt(in), and B with zeros,
so an adapted layer first computes the same as the layer without adapters. There is no dropout.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from .layers.block import Block
from .layers.projections import Linear


@dataclasses.dataclass(frozen=True)
class LowRank:
    """Which linear layers of a block have adapters, and of what kind."""

    rank: int
    alpha: float
    rank_stabilized: bool
    targets: tuple[tuple[str, ...], ...]
    """Linear layers by their path in a block: ("mlp", "up")."""
    shared: tuple[tuple[tuple[str, ...], ...], ...] = ()
    """Targets that share one A, as in a PEFT adapter of their fused matrix."""

    @property
    def scale(self) -> float:
        """Factor of (x A) B."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


def part_of(block: Block, path: tuple[str, ...]) -> Any:
    """The part of a block at this path; None if its kind of layer has none."""
    return functools.reduce(lambda part, key: getattr(part, key, None), path, block)


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

    sharing = {path for group in low_rank.shared for path in group}
    for path in low_rank.targets:
        linear: Linear | None = part_of(block, path)
        if linear is None:
            continue
        linear.lora_scale = low_rank.scale
        if path not in sharing:
            linear.lora_a = down(linear)
        zeros = jnp.zeros((low_rank.rank, linear.kernel.shape[1]))
        linear.lora_b = nnx.Param(zeros, out_sharding=("rank", axes(linear)[1]))
    for group in low_rank.shared:
        part, first = part_of(block, group[0][:-1]), part_of(block, group[0])
        if part is None or first is None:
            continue
        part.lora_scale = low_rank.scale
        part.lora_a = down(first)
