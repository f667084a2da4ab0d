"""Mixtures of experts: the choice, the products, and experts cut over a mesh."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lib.checkpoints import load, plain_rows, small_model

from jaxalign.models.layers.grouped import CPU, GPU, TPU, Tiling, blocks_of, grouped_dot
from jaxalign.models.layers.mixture import _sum_of_experts, choose
from jaxalign.models.spec import Dense, Experts, Router
from jaxalign.settings import Mesh

KEYS = ("ids", "positions", "segment", "branch")
RNG = np.random.default_rng(0)
TILINGS = (CPU, GPU, TPU, Tiling(3, 2), Tiling(4, 1))
GROUPS = {
    "random": RNG.integers(0, 6, 50),
    "all of one group": np.full(50, 3),
    "some of no group": RNG.integers(0, 9, 50),
    "none of any group": np.full(50, 7),
    "one row": np.array([2]),
}


@pytest.mark.parametrize("tiling", TILINGS, ids=str)
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
def test_grouped_products_equal_one_product_for_each_row(tiling, groups):
    x = jnp.asarray(RNG.normal(size=(len(groups), 5)), jnp.float32)
    matrices = jnp.asarray(RNG.normal(size=(6, 5, 4)), jnp.float32)
    factors = RNG.normal(size=(len(groups), 4)).astype(np.float32)

    def ours(x, matrices):
        blocks = blocks_of(jnp.asarray(groups), 6, tiling.size)
        blank = jnp.zeros((len(blocks.group) * tiling.size, 5))
        rows = blank.at[blocks.place].set(x, mode="drop").reshape(-1, tiling.size, 5)
        y = grouped_dot(rows, matrices, blocks, tiling.together).reshape(-1, 4)
        y = y.at[blocks.place].get(mode="fill", fill_value=0)
        return jnp.sum(factors * y), y

    def dense(x, matrices):
        inside = (groups < 6)[:, None]
        y = jnp.einsum("md,mdf->mf", x, matrices[np.minimum(groups, 5)]) * inside
        return jnp.sum(factors * y), y

    found, wanted = (
        jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True))(x, matrices) for f in (ours, dense)
    )
    chex.assert_trees_all_close(found, wanted, rtol=1e-5, atol=1e-5)


def mixture(scales_input=False, **expert):
    return Experts(6, Router(2, "softmax"), Dense(7, "silu", **expert), scales_input=scales_input)


@pytest.mark.parametrize("tiling", TILINGS, ids=str)
@pytest.mark.parametrize(
    "kind",
    [
        mixture(),
        mixture(scales_input=True),
        mixture(gated=False, bias=True),
        mixture(bias=True, limit=0.5, offset=1.0),
    ],
)
def test_every_token_gets_all_its_experts(kind, tiling):
    x = RNG.normal(size=(20, 5))
    experts = RNG.integers(0, 6, (20, 1))
    experts = np.concatenate([experts, (experts + 1) % 6], 1)
    factors = RNG.uniform(0.1, 1, (20, 2))
    shapes = {"gate": (5, 7), "up": (5, 7), "down": (7, 5)}
    layers = {
        name: (RNG.normal(size=(6, *s)), RNG.normal(size=(6, s[1])) if kind.expert.bias else None)
        for name, s in shapes.items()
    }

    def one(e, row):
        def linear(name, y):
            kernel, bias = layers[name]
            return y @ kernel[e] + (0 if bias is None else bias[e])

        gate, up = linear("gate", row), linear("up", row)
        if kind.expert.limit:
            gate, up = np.minimum(gate, 0.5), np.clip(up, -0.5, 0.5)
        silu = gate / (1 + np.exp(-gate))
        if not kind.expert.gated:
            return linear("down", up / (1 + np.exp(-up)))
        return linear("down", silu * (up + kind.expert.offset))

    wanted = np.zeros_like(x)
    for t in range(20):
        for e, factor in zip(experts[t], factors[t], strict=True):
            wanted[t] += one(e, factor * x[t]) if kind.scales_input else factor * one(e, x[t])

    floats = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (x, factors, layers))
    x32, factors32, made = floats
    gate = made["gate"] if kind.expert.gated else None
    matrices = gate, made["up"], made["down"]
    compute = jax.jit(functools.partial(_sum_of_experts, kind, tiling))
    found = compute(x32, jnp.asarray(experts), factors32, matrices)
    np.testing.assert_allclose(found, wanted, atol=2e-5, rtol=2e-5)


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


LOGITS = np.array([0.3, -1.0, 2.0, 0.5, 0.1, 1.5])
P, S = softmax(LOGITS), 1 / (1 + np.exp(-LOGITS))
CORRECTION = np.array([0.9, 0.0, -1.0, 0.0, 0.8, 0.0])
CHOICES = {
    "softmax": (Router(2, "softmax"), None, {2: P[2], 5: P[5]}),
    "divided by their sum": (
        Router(2, "softmax", normalized=True),
        None,
        {2: P[2] / (P[2] + P[5]), 5: P[5] / (P[2] + P[5])},
    ),
    "of the chosen": (
        Router(2, "softmax of the chosen"),
        None,
        dict(zip((2, 5), softmax(LOGITS[[2, 5]]), strict=True)),
    ),
    "scaled": (Router(1, "sigmoid", scale=2.5), None, {2: 2.5 * S[2]}),
    "chosen by s + b, weighed by s": (
        Router(2, "sigmoid", correction=True),
        CORRECTION,
        {0: S[0], 4: S[4]},
    ),
    "from the group of the largest": (
        Router(2, "softmax", groups=3, kept_groups=1),
        None,
        {2: P[2], 3: P[3]},
    ),
    "from the group of the largest sum": (
        Router(2, "sigmoid", correction=True, groups=3, kept_groups=1, group_score="largest two"),
        np.zeros(6),
        {2: S[2], 3: S[3]},
    ),
}


@pytest.mark.parametrize("router, correction, wanted", CHOICES.values(), ids=CHOICES)
def test_the_choice_is_the_one_of_the_formula(router, correction, wanted):
    correction = None if correction is None else jnp.asarray(correction, jnp.float32)
    experts, factors = choose(router, jnp.asarray(LOGITS, jnp.float32), correction)
    found = dict(zip(experts.tolist(), factors.tolist(), strict=True))
    assert found.keys() == wanted.keys()
    for e, factor in wanted.items():
        assert found[e] == pytest.approx(factor, rel=1e-5)


def test_the_correction_has_no_gradient():
    router = Router(2, "sigmoid", correction=True)
    slope = jax.grad(lambda b: choose(router, jnp.asarray(LOGITS), b)[1].sum())
    assert not np.any(slope(jnp.asarray(CORRECTION)))


@pytest.mark.slow
@pytest.mark.parametrize("rows", [4, 3])  # the mesh divides 4 rows
def test_eight_devices_give_the_gradient_of_one(hf_checkpoint, rows):
    folder = hf_checkpoint("qwen2_moe")
    batch = plain_rows([20, 13, 9, 17][:rows], 20)
    found = []
    for mesh in (None, Mesh(data=2, fsdp=2, tensor=2)):
        model = small_model(folder, mesh=mesh)

        def loss(params, model=model):
            hidden, head, *_ = model.forward(params, *(batch[key] for key in KEYS))
            logits = head.logits(hidden)
            return jnp.mean(jnp.sin(logits), where=batch["segment"][..., None] > 0)

        with jax.set_mesh(model.mesh):
            value, slope = jax.jit(jax.value_and_grad(loss))(load(folder, mesh=mesh))
        found.append(jax.tree.map(np.asarray, (value, slope)))
    chex.assert_trees_all_close(*found, rtol=1e-5, atol=1e-6)
