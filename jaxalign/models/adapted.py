"""A frozen decoder and its low-rank adapters, in two trees: only the adapters are trained."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jax.typing import DTypeLike

from ..core.types import Array
from .decoder import Encoded, Model, Params, build
from .lora import LowRank


@dataclasses.dataclass(frozen=True, eq=False)
class Adapted:
    """A decoder with adapters, without its parameters: static, like `Model`."""

    base: Model
    """The decoder without adapters."""
    whole: Model
    """The same decoder with adapters."""
    low_rank: LowRank
    abstract: Params
    """The adapters, in the form of `Model.abstract`; their leaves are `lora_a` and `lora_b`."""

    @property
    def mesh(self) -> Mesh:
        """The device mesh of both trees."""
        return self.base.mesh

    def forward(
        self, frozen: Params, adapters: Params, ids: Array, positions: Array, segment: Array,
        branch: Array, *, layers: bool = False,
    ) -> Encoded:  # fmt: skip
        """Like `Model.forward`; an empty dict of adapters gives the frozen decoder."""
        model = self.whole if adapters else self.base
        params = joined(frozen, adapters)
        return model.forward(params, ids, positions, segment, branch, layers=layers)

    def init(self, key: Array) -> Params:
        """Adapters of zero effect: A random, B zero, each created on its own shards."""
        names = flatten_dict(self.abstract)

        def create(key: Array) -> Params:
            # The weights of the decoder are traced too, but XLA removes them.
            made = flatten_dict(self.whole.create(key))
            return unflatten_dict({name: made[name] for name in names})

        shardings = jax.tree.map(lambda p: p.sharding, self.abstract)
        with jax.set_mesh(self.mesh):
            return jax.jit(create, out_shardings=shardings)(key)

    def merged(self, frozen: Params, adapters: Params) -> Params:
        """Parameters with which `base` computes the same without adapters.

        Adapted matrices are `Merged`: their sum is computed when a layer reads it.
        """
        flat: dict[tuple[str, ...], Any] = flatten_dict(frozen)
        low: dict[tuple[str, ...], Any] = flatten_dict(adapters)
        for (*owner, leaf), b in low.items():
            if leaf == "lora_b":
                own, shared = (*owner, "lora_a"), (*owner[:-1], "lora_a")
                a = low[own] if own in low else low[shared]
                name = (*owner, "kernel")
                flat[name] = Merged(flat[name], a, b, self.low_rank.scale)
        return unflatten_dict(flat)


@functools.lru_cache(maxsize=64)
def adapt(model: Model, low_rank: LowRank) -> Adapted:
    """Give a decoder low-rank adapters; equal arguments give the same object, as in `build`."""
    whole = build(
        model.spec,
        model.mesh,
        dtype=model.dtype.name,
        param_dtype=model.param_dtype.name,
        remat=model.remat,
        branches=model.branches,
        lora=low_rank,
    )
    base = flatten_dict(model.abstract)
    added = {k: v for k, v in flatten_dict(whole.abstract).items() if k not in base}
    return Adapted(model, whole, low_rank, unflatten_dict(added))


def joined(frozen: Params, adapters: Params) -> Params:
    """Both trees as one."""
    return unflatten_dict(flatten_dict(frozen) | flatten_dict(adapters))


@flax.struct.dataclass
class Merged:
    """The `Kernel` W + scale A B, stacked over layers; `astype` computes it in float32."""

    kernel: Array  # [..., in, out]
    a: Array  # [..., in, rank]
    b: Array  # [..., rank, out]
    scale: float = flax.struct.field(pytree_node=False)

    def __getitem__(self, layer: Any) -> Merged:
        """The matrix of one layer."""
        return Merged(self.kernel[layer], self.a[layer], self.b[layer], self.scale)

    def astype(self, dtype: DTypeLike) -> Array:
        """The sum as an array."""
        product = jnp.matmul(self.a, self.b, precision="highest")
        return (self.kernel.astype(jnp.float32) + self.scale * product).astype(dtype)


def materialized(params: Params, model: Model) -> Params:
    """Replace every `Merged` by its sum, an array as in `model.abstract`."""

    def add(leaf: Array | Merged, like: jax.ShapeDtypeStruct) -> Array:
        if not isinstance(leaf, Merged):
            return leaf
        return jax.jit(lambda x: x.astype(like.dtype), out_shardings=like.sharding)(leaf)

    return jax.tree.map(add, params, model.abstract, is_leaf=lambda x: isinstance(x, Merged))
