"""Statistics of the whole vocabulary, of the policy alone and of it and its reference together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lib import runs as h
from lib.objectives import logit_grads
from lib.steps import (
    MESHES,
    B,
    assert_same,
    batch_of,
    dense_gradient,
    gradient,
    one_device,
    parameters,
    small_model,
    some_examples,
)

from jaxalign.core import layouts, stats
from jaxalign.core.objective import objective
from jaxalign.core.sharding import make_mesh, put_batch
from jaxalign.core.types import Pairs
from jaxalign.errors import UserError
from jaxalign.objectives import OBJECTIVES
from jaxalign.update.forward import Task
from jaxalign.update.gradient import value_and_grad
from jaxalign.update.step import eval_step

LIVE = {"mode": "live"}


@pytest.fixture(scope="module")
def logits():
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(5, 7)) * 3, jnp.float32) for _ in range(2)]


def test_the_collision_of_a_row_is_the_sum_of_its_squares(logits):
    p = np.exp(np.asarray(logits[0], np.float64))
    p /= p.sum(-1, keepdims=True)
    out = stats.log_collision(logits[0], jnp.zeros(5, jnp.int32))
    np.testing.assert_allclose(out, np.log((p**2).sum(-1)), rtol=1e-5)


def test_the_slope_of_the_forward_kl_is_the_difference_of_distributions(logits):
    policy, ref = logits
    slope = jax.grad(lambda z: stats.forward_kl(z, jnp.zeros(5, jnp.int32), ref).sum())(policy)
    wanted = jax.nn.softmax(policy) - jax.nn.softmax(ref)
    np.testing.assert_allclose(slope, wanted, rtol=1e-5, atol=1e-6)


def test_the_forward_kl_of_a_model_and_itself_is_zero(logits):
    out = stats.forward_kl(logits[0], jnp.zeros(5, jnp.int32), logits[0])
    np.testing.assert_array_equal(out, 0.0)


def test_what_a_reference_may_be_follows_from_what_is_read():
    found = {name: OBJECTIVES[name].reference for name in ("sft", "dpo", "wpo", "tdpo1")}
    assert found == {"sft": "none", "dpo": "cached", "wpo": "cached", "tdpo1": "live"}


def test_joint_statistics_need_a_reference():
    def alone(policy):
        """Documented."""

    with pytest.raises(TypeError, match="joint statistics need a `ref` input"):
        objective(Pairs, source="a test", needs=(stats.logp, stats.forward_kl))(alone)


def test_joint_statistics_are_of_separate_examples():
    def coupled(policy, ref):
        """Documented."""

    needs = (stats.logp, stats.forward_kl)
    with pytest.raises(TypeError, match=r"joint statistics need .* separate examples"):
        objective(Pairs, source="a test", needs=needs, couples_examples=True)(coupled)


# Worked values, on the logits of `lib.objectives`

WORKED = {
    "tdpo1": (
        0.6751323089535,
        [
            [-0.03032904501, 0.01536106657, 0.005651020587, 0.009316957844],
            [0.01041424346, -0.03011510529, 0.006980876154, 0.01271998568],
            [0.01159653036, 0.007773386763, 0.008590920985, -0.02796083811],
        ],
        [
            [-0.0103989167, -0.01894806162, 0.0350540248, -0.005707046486],
            [0.03082149617, -0.006081420857, -0.01653101581, -0.008209059507],
        ],
    ),
    "tdpo2": (
        0.6755271018866,
        [
            [-0.02756164549, 0.0130704586, 0.004808353005, 0.009682833883],
            [0.008152121035, -0.02462086356, 0.005464530147, 0.01100421238],
            [0.01488988291, 0.006053774629, 0.009980986999, -0.03092464454],
        ],
        [
            [-0.01082339277, -0.02079883613, 0.03700296051, -0.005380731602],
            [0.02861762989, -0.005575602649, -0.01515605936, -0.007885967875],
        ],
    ),
}


@pytest.mark.parametrize("name", WORKED)
def test_worked_value_and_gradient_of_tdpo(name):
    loss, chosen, rejected = WORKED[name]
    value, grad = logit_grads(name)
    np.testing.assert_allclose(value, loss, rtol=1e-6)
    np.testing.assert_allclose(grad["chosen"], chosen, rtol=1e-5)
    np.testing.assert_allclose(grad["rejected"], rejected, rtol=1e-5)


@pytest.mark.parametrize(
    ("hyper", "loss"), [({}, 0.6759220563887), ({"clamp": False}, 0.9013562702929)]
)
def test_worked_value_of_wpo(hyper, loss):
    np.testing.assert_allclose(logit_grads("wpo", **hyper)[0], loss, rtol=1e-6)


def test_worked_gradient_of_wpo():
    # The slope in the log-probability of the first chosen token, through its own logit.
    _, grad = logit_grads("wpo", clamp=False)
    p = np.exp([1, 0.5, -0.5, 0.2])
    slope = -0.06551759916259 * (1 - p[0] / p.sum())
    np.testing.assert_allclose(grad["chosen"][0, 0], slope, rtol=1e-5)


# The step


@pytest.mark.parametrize(
    "name", ["tdpo1", *(pytest.param(k, marks=pytest.mark.slow) for k in ("wpo", "sparse_po"))]
)
@pytest.mark.parametrize(
    ("n", "chunks"),
    [
        pytest.param(1, 1, marks=pytest.mark.slow),
        pytest.param(4, 1, marks=pytest.mark.slow),
        (2, 4),
    ],
)
def test_microbatches_and_chunks_give_the_dense_gradient(name, n, chunks):
    assert_same(gradient(name, n=n, chunks=chunks), dense_gradient(name))


@pytest.mark.slow
@pytest.mark.parametrize("axes", ["tensor", "mixed"])
def test_eight_devices_give_the_dense_gradient(axes):
    assert_same(gradient("tdpo1", mesh=make_mesh(MESHES[axes])), dense_gradient("tdpo1"))
    assert_same(gradient("sparse_po", mesh=make_mesh(MESHES[axes])), dense_gradient("sparse_po"))


@pytest.mark.parametrize("remat", [pytest.param("full", marks=pytest.mark.slow), "dots"])
def test_remat_does_not_change_what_is_read_of_layers(remat):
    assert_same(gradient("sparse_po", remat=remat), dense_gradient("sparse_po"))


@pytest.mark.slow
def test_unpacked_rows_give_the_dense_gradient():
    from lib.packing import unshared_batch
    from lib.steps import T

    items = some_examples(layouts.PAIRS, B)
    batch = unshared_batch(items, np.arange(B), responses=2, microbatches=2, shards=1, max_scored=T)
    assert_same(gradient("tdpo2", batch=batch), dense_gradient("tdpo2"))
    assert_same(gradient("sparse_po", batch=batch), dense_gradient("sparse_po"))


def test_a_cached_reference_gives_the_gradient_of_a_live_one():
    assert_same(gradient("wpo", cached=True), dense_gradient("wpo"))


@pytest.mark.parametrize("name", ["tdpo1", "sparse_po"])
def test_a_joint_statistic_without_a_live_reference_is_refused(name):
    mesh = one_device()
    with jax.set_mesh(mesh):
        model = small_model(mesh)
        task = Task(OBJECTIVES[name], {}, model.forward)
        batch = put_batch(batch_of(some_examples(layouts.PAIRS, B)), mesh)
        with pytest.raises(ValueError, match=f"objective '{name}' needs a live reference"):
            value_and_grad(task, parameters(model), batch)


@pytest.mark.parametrize("name", ["tdpo1", "sparse_po"])
def test_evaluation_reads_the_loss_of_the_step(name):
    mesh = one_device()
    with jax.set_mesh(mesh):
        model = small_model(mesh)
        params, ref = parameters(model, 0), parameters(model, 1)
        task = Task(OBJECTIVES[name], {}, model.forward)
        batch = put_batch(batch_of(some_examples(layouts.PAIRS, B), n=2), mesh)
        sums, _ = jax.jit(lambda p, r, b: eval_step(task, p, None, b, r))(params, ref, batch)
    ((total, count),) = sums.terms
    np.testing.assert_allclose(total / count, dense_gradient(name)[0], rtol=1e-5)


# Runs


@pytest.mark.parametrize("lora", [None, pytest.param({"rank": 4}, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["tdpo2", "sparse_po"])
def test_a_recipe_trains_with_a_live_reference(inputs, tmp_path, name, lora):
    changes = {f"stages__{name}__reference": LIVE, f"stages__{name}__lora": lora}
    changes[f"stages__{name}__data__eval_path"] = f"{inputs}/held_out.jsonl"
    h.run(h.recipe(inputs, tmp_path / "run", name, **changes), one_device())
    losses = [x["loss"] for x in h.metrics(tmp_path / "run" / name) if "loss" in x]
    np.testing.assert_allclose(losses[0], np.log(2), rtol=1e-6)
    assert losses[-1] < losses[0]


def test_a_recipe_trains_wpo_with_a_cached_reference(inputs, tmp_path):
    h.run(h.recipe(inputs, tmp_path / "run", "wpo"), one_device())
    losses = [x["loss"] for x in h.metrics(tmp_path / "run" / "wpo") if "loss" in x]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["tdpo1", "sparse_po"])
def test_a_cached_reference_is_refused_with_what_to_set(inputs, tmp_path, name):
    message = (
        f"stages.{name}.reference.mode: {name} reads the reference's logits, which are not cached; "
        r"set it to live \(got 'cached'\)"
    )
    with pytest.raises(UserError, match=message):
        h.recipe(inputs, tmp_path / "run", name)
