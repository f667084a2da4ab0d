"""The mixture of experts of one layer."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ...core.sharding import RULES, batch_shards, spec
from ...core.types import Array
from ..spec import Experts, Router
from .grouped import CPU, GPU, TPU, Tiling, blocks_of, grouped_dot
from .mlp import Mlp, activated
from .projections import Linear, normal_param


class Routing(NamedTuple):
    """What a router did with the tokens of its rows, summed over them; float32."""

    tokens: Array  # []
    load: Array  # [experts] the tokens that each expert computes
    probability: Array  # [experts] softmax of the logits
    entropy: Array  # [] of that softmax, nats


INTO, BACK = ("experts", "embed", None), ("experts", None, "embed")
"""Logical axes of the matrices that read the residual stream, and of those that write to it."""


class Matrices(nnx.Module):
    """A linear layer for each expert."""

    def __init__(
        self,
        rngs: nnx.Rngs,
        shape: tuple[int, int, int],
        axes: tuple[str | None, ...],
        *,
        bias: bool,
        dtype: DTypeLike,
    ):
        """Kernels [experts, in, out] with these logical axes."""
        self.kernel = normal_param(rngs, shape, axes, dtype)
        zeros = jnp.zeros((shape[0], shape[2]), dtype)
        self.bias = nnx.Param(zeros, out_sharding=("experts", None)) if bias else None

    def arrays(self, dtype: DTypeLike) -> tuple[Array, Array | None]:
        """The kernels and the biases in `dtype`."""
        bias = None if self.bias is None else self.bias[...].astype(dtype)
        return self.kernel[...].astype(dtype), bias


class Mixture(nnx.Module):
    """sum over the chosen experts e of factor_e expert_e(x), and the shared feed-forward.

    Experts are computed where their weights are: every device of the tensor axis has all tokens of
    its rows, computes its own experts for them, and the results are added up. Over the fsdp axis,
    weights are gathered where they are used, so that their gradients are summed in parts.
    """

    correction: nnx.Param | None = None
    gate: Matrices | None = None
    shared: Mlp | None = None
    shared_gate: Linear | None = None

    def __init__(self, kind: Experts, width: int, rngs: nnx.Rngs, dtype: DTypeLike):
        self.kind = kind
        count, inner = kind.count, kind.expert.width
        options = {"bias": kind.expert.bias, "dtype": dtype}
        self.router = Linear(
            rngs, (width, count), ("embed", None), bias=kind.router.bias, dtype=dtype
        )
        if kind.router.correction:
            self.correction = nnx.Param(jnp.zeros(count, dtype), out_sharding=("norm",))
        into, back = (count, width, inner), (count, inner, width)
        if kind.expert.gated:
            self.gate = Matrices(rngs, into, INTO, **options)
        self.up = Matrices(rngs, into, INTO, **options)
        self.down = Matrices(rngs, back, BACK, **options)
        if kind.shared is not None:
            self.shared = Mlp(kind.shared, width, rngs, dtype)
        if kind.shared_gate:
            self.shared_gate = Linear(rngs, (width, 1), ("embed", None), bias=False, dtype=dtype)

    def __call__(self, x: Array, real: Array) -> tuple[Array, Routing]:
        """[K, L, D] -> [K, L, D], and the routing of the tokens that are `real`, [K, L] bool."""
        logits = self.logits(x)
        experts, factors = choose(self.kind.router, logits, self.correction)
        routing = _routing(logits, experts, real)
        gate = None if self.gate is None else self.gate.arrays(x.dtype)
        matrices = (gate, self.up.arrays(x.dtype), self.down.arrays(x.dtype))
        compute = functools.partial(_of_experts, self.kind)
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty:
            y = compute(x, experts, factors, matrices)
        else:
            rows = spec("batch" if x.shape[0] % batch_shards(mesh) == 0 else None)
            cut = tuple(
                layer and (spec(*axes), None if layer[1] is None else spec("experts"))
                for layer, axes in zip(matrices, (INTO, INTO, BACK), strict=True)
            )
            y = jax.shard_map(
                functools.partial(compute, on_mesh=True),
                mesh=mesh,
                in_specs=(rows, rows, rows, cut),
                out_specs=rows,
                check_vma=False,  # the loops of `grouped_dot` start from constants
            )(x, experts, factors, matrices)
        if self.shared is None:
            return y, routing
        always = self.shared(x)
        if self.shared_gate is not None:
            always = jax.nn.sigmoid(self.shared_gate(x)) * always
        return y + always, routing

    def logits(self, x: Array) -> Array:
        """[K, L, D] -> logits of the router [K, L, experts] float32."""
        kernel = self.router.kernel[...].astype(jnp.float32)
        z = jnp.matmul(x.astype(jnp.float32), kernel, precision="highest")
        return z if self.router.bias is None else z + self.router.bias[...].astype(jnp.float32)


def choose(
    router: Router, logits: Array, correction: nnx.Param | None = None
) -> tuple[Array, Array]:
    """Logits [..., experts] -> numbers and factors of the chosen experts, [..., chosen]."""
    scores = logits
    if router.score != "softmax of the chosen":
        scores = jax.nn.softmax(logits) if router.score == "softmax" else jax.nn.sigmoid(logits)
    # Scores grow with logits, but round to the same number earlier.
    rank = logits if correction is None else scores + correction[...].astype(jnp.float32)
    rank = jax.lax.stop_gradient(rank)
    if router.kept_groups < router.groups:
        rank = jnp.where(_in_kept_groups(router, rank), rank, -jnp.inf)
    experts = jax.lax.top_k(rank, router.chosen)[1]
    factors = jnp.take_along_axis(scores, experts, -1)
    if router.score == "softmax of the chosen":
        factors = jax.nn.softmax(factors)
    if router.normalized:
        factors = factors / jnp.maximum(factors.sum(-1, keepdims=True), 1e-20)
    return experts, router.scale * factors


def _routing(logits: Array, experts: Array, real: Array) -> Routing:
    """Logits [K, L, experts], chosen experts [K, L, chosen] and real tokens [K, L] -> sums."""
    real = real[..., None]
    chosen = experts[..., None] == jnp.arange(logits.shape[-1])
    logp = jax.nn.log_softmax(logits)
    probability = jnp.where(real, jnp.exp(logp), 0.0)
    return Routing(
        tokens=jnp.sum(real, dtype=jnp.float32),
        load=jnp.sum(chosen & real[..., None], (0, 1, 2), dtype=jnp.float32),
        probability=probability.sum((0, 1)),
        entropy=-jnp.sum(probability * logp),
    )


def _in_kept_groups(router: Router, rank: Array) -> Array:
    """Whether each expert is in a group from which experts are chosen, [..., experts] bool."""
    members = rank.reshape(*rank.shape[:-1], router.groups, -1)
    largest = {"largest": 1, "largest two": 2}[router.group_score]
    score = jax.lax.top_k(members, largest)[0].sum(-1)
    kept = jax.lax.top_k(score, router.kept_groups)[1]
    chosen = (kept[..., None] == jnp.arange(router.groups)).any(-2)
    return jnp.repeat(chosen, members.shape[-1], -1)


Linears = tuple[Array, Array | None]
"""Kernels [experts, in, out] and biases [experts, out]."""


def _of_experts(
    kind: Experts,
    x: Array,
    experts: Array,
    factors: Array,
    matrices: tuple[Linears | None, Linears, Linears],
    on_mesh: bool = False,
) -> Array:
    """Tokens [K, L, D] and their experts and factors [K, L, chosen] -> [K, L, D].

    On a mesh every device has its part of the weights of its own experts.
    """
    axis, held = RULES["experts"], len(matrices[1][0])
    if on_mesh:
        matrices = _whole(matrices)
    own = experts - (jax.lax.axis_index(axis) * held if on_mesh else 0)
    own = jnp.where((own >= 0) & (own < held), own, held)
    y = jax.lax.platform_dependent(
        x.reshape(-1, x.shape[-1]),
        own.reshape(-1, own.shape[-1]),
        factors.reshape(-1, own.shape[-1]),
        matrices,
        tpu=functools.partial(_sum_of_experts, kind, TPU),
        cpu=functools.partial(_sum_of_experts, kind, CPU),
        default=functools.partial(_sum_of_experts, kind, GPU),
    )
    y = jax.lax.psum(y, axis) if on_mesh else y
    return y.reshape(x.shape).astype(x.dtype)


def _whole(
    matrices: tuple[Linears | None, Linears, Linears],
) -> tuple[Linears | None, Linears, Linears]:
    """The weights of a device's experts, from the parts that its neighbors have."""

    def whole(layer: Linears, axes: tuple[str | None, ...]) -> Linears:
        kernels, bias = layer
        cut = axes.index("embed")
        return jax.lax.all_gather(kernels, RULES["embed"], axis=cut, tiled=True), bias

    gate, up, down = matrices
    return gate and whole(gate, INTO), whole(up, INTO), whole(down, BACK)


def _sum_of_experts(
    kind: Experts,
    tiling: Tiling,
    x: Array,
    experts: Array,
    factors: Array,
    matrices: tuple[Linears | None, Linears, Linears],
) -> Array:
    """Tokens [tokens, D], their experts and factors [tokens, chosen] -> [tokens, D] float32."""
    gate, up, down = matrices
    count, (tokens, chosen) = len(up[0]), experts.shape
    blocks = blocks_of(experts.reshape(-1), count, tiling.size)
    shape = (len(blocks.group), tiling.size)

    token = jnp.repeat(jnp.arange(tokens), chosen)
    source = jnp.full(math.prod(shape), tokens)
    source = source.at[blocks.place].set(token, mode="drop", unique_indices=True)
    rows = x.at[source].get(mode="fill", fill_value=0)
    if kind.scales_input:
        scales = jnp.zeros(math.prod(shape), factors.dtype)
        scales = scales.at[blocks.place].set(factors.reshape(-1), mode="drop", unique_indices=True)
        rows = (rows * scales[:, None]).astype(x.dtype)
    rows = rows.reshape(*shape, -1)

    def linear(rows: Array, layer: Linears) -> Array:
        kernels, bias = layer
        y = grouped_dot(rows, kernels, blocks, tiling.together)
        return y if bias is None else y + bias.astype(jnp.float32)[blocks.group][:, None]

    first = None if gate is None else linear(rows, gate).astype(x.dtype)
    y = activated(kind.expert, first, linear(rows, up).astype(x.dtype))
    y = linear(y, down).reshape(math.prod(shape), -1)
    y = y.at[blocks.place].get(mode="fill", fill_value=0, unique_indices=True)
    y = y.reshape(tokens, chosen, -1)
    return y.sum(1) if kind.scales_input else jnp.einsum("tcd,tc->td", y, factors)
