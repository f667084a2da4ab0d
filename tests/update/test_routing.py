"""The balance loss and the metrics of routers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from lib.checkpoints import in_torch, load, named_slopes, plain_rows, small_model
from lib.steps import (
    LLAMA,
    MESHES,
    assert_same,
    batch_of,
    examples_of,
    gradient,
    one_device,
    parameters,
)
from lib.steps import small_model as decoder

from jaxalign.core.sharding import make_mesh, put_batch
from jaxalign.models.layers.mixture import Routing
from jaxalign.objectives import OBJECTIVES
from jaxalign.update.forward import Task
from jaxalign.update.gradient import Summand, sum_and_grad
from jaxalign.update.routing import balance_loss, routing_sums

KEYS = ("ids", "positions", "segment", "branch")
MIXTURE = LLAMA | {
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 16,
    "num_experts": 6,
    "num_experts_per_tok": 2,
}


# The family for which transformers 5.0 computes it from logits, not from probabilities.
def test_the_balance_loss_and_its_gradient_equal_those_of_transformers(hf_checkpoint):
    folder = hf_checkpoint("gpt_oss")
    rows = plain_rows([20, 13, 9], 20)
    theirs = in_torch(folder)
    wanted = theirs(
        input_ids=torch.tensor(rows["ids"]).long(),
        attention_mask=torch.tensor(rows["segment"]).long(),
        output_router_logits=True,
    ).aux_loss
    wanted.backward()
    named = {k: p.grad.numpy() for k, p in theirs.named_parameters() if p.grad is not None}
    model = small_model(folder)

    def loss(params):
        return balance_loss(model.forward(params, *(rows[key] for key in KEYS)).routing)

    with jax.set_mesh(model.mesh):
        value, slopes = jax.jit(jax.value_and_grad(loss))(load(folder))
    assert float(value) == pytest.approx(wanted.item(), rel=1e-5)
    ours = named_slopes(slopes, model, named)
    for tensor, slope in named.items():
        off = np.abs(ours[tensor] - slope).max()
        assert off <= 1e-4 * np.abs(slope).max() + 1e-7, (tensor, off)


def balance_gradient_of(name):
    """The balance loss of the examples of `gradient` and its gradient, in one batch."""
    mesh = one_device()
    model = decoder(mesh, config=MIXTURE)
    batch = batch_of(examples_of(OBJECTIVES[name]))
    rows = [getattr(batch, key).reshape(-1, batch.ids.shape[-1]) for key in KEYS]

    def loss(params):
        return balance_loss(model.forward(params, *rows).routing)

    with jax.set_mesh(mesh):
        return jax.jit(jax.value_and_grad(loss))(parameters(model))


@functools.cache
def with_balance(name):
    """The loss of an objective and 0.5 times the balance loss of the whole batch; gradient."""
    loss, slopes, _ = gradient(name, config=MIXTURE)
    balance, its_slopes = balance_gradient_of(name)
    return loss + 0.5 * balance, jax.tree.map(lambda a, b: a + 0.5 * b, slopes, its_slopes)


# An objective that is separate, and one that couples examples.
@pytest.mark.parametrize("name", ["dpo", pytest.param("kto", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("n", "mesh"),
    [
        (4, None),
        pytest.param(1, None, marks=pytest.mark.slow),
        pytest.param(2, make_mesh(MESHES["mixed"]), marks=pytest.mark.slow),
    ],
    ids=["4 microbatches", "one batch", "8 devices, 2 microbatches"],
)
def test_the_balance_loss_is_that_of_the_whole_batch(name, n, mesh):
    found = gradient(name, config=MIXTURE, router_balance=0.5, n=n, mesh=mesh)
    assert_same(found, with_balance(name))


@pytest.mark.slow
@pytest.mark.parametrize("names", [("dpo", "slpo"), ("dpo", "bco_pair")])
def test_each_term_of_a_shared_forward_pass_counts_the_balance_loss(names):
    mesh, weights = one_device(), (0.5, 2.0)
    with jax.set_mesh(mesh):
        model = decoder(mesh, config=MIXTURE)
        params, ref_params = parameters(model, 0), parameters(model, 1)
        batch = put_batch(batch_of(examples_of(OBJECTIVES[names[0]]), n=2), mesh)
        summands = []
        for name, weight in zip(names, weights, strict=True):
            of = OBJECTIVES[name]
            task = Task(of, {}, model.forward, weight=weight, term=name, router_balance=0.5)
            state = of.init_state and of.init_state()
            summands.append(Summand(task, batch, state, ref_params))
        grads, found = jax.jit(lambda p: sum_and_grad(summands, p))(params)
    singles = [gradient(name, config=MIXTURE, router_balance=0.5, n=2) for name in names]
    wanted = jax.tree.map(
        lambda *each: np.tensordot(weights, each, 1), *(one[:2] for one in singles)
    )
    loss = sum(w * own.loss for w, own in zip(weights, found, strict=True))
    assert_same((loss, grads), wanted)


def test_metrics_are_those_of_the_counts():
    routing = Routing(
        tokens=jnp.array([4.0, 4.0]),
        load=jnp.array([[4.0, 2.0, 2.0], [0.0, 4.0, 4.0]]),
        probability=jnp.array([[2.0, 1.0, 1.0], [0.0, 2.0, 2.0]]),
        entropy=jnp.array([4.0, 2.0]),
    )
    found = {k: float(s / w) for k, (s, w) in routing_sums(routing).items()}
    assert found["router/entropy"] == pytest.approx(6 / 8)
    assert found["router/largest_load"] == pytest.approx(1.5)
    balance = 3 * (4 * 2 + 6 * 3 + 6 * 3) / 64
    assert found["router/balance_loss"] == pytest.approx(balance)
    assert routing_sums(None) == {}
