import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lib.packing import in_spans
from lib.steps import (
    MESHES,
    B,
    T,
    assert_same,
    batch_of,
    dense_gradient,
    dense_loss,
    gradient,
    one_device,
    parameters,
    small_model,
    some_examples,
)

from jaxalign.core import layouts
from jaxalign.core.sharding import make_mesh, put_batch
from jaxalign.objectives import OBJECTIVES
from jaxalign.settings import Mesh, Optimizer
from jaxalign.update import step
from jaxalign.update.forward import Task
from jaxalign.update.loss import weighted_sum
from jaxalign.update.optimizer import Rule
from jaxalign.update.state import TrainState, abstract_state
from jaxalign.update.step import Fixed, Step, eval_step, train_step

# One objective of each kind: per token, paired, coupled with state or frozen rows, ranked, with
# context that is not scored, with a reward head.
KINDS = ["sft", "dpo", "slpo", "bco", "kto", "info_nca", "rdpo", "gpm"]
# Each kind is tested; the fast tests have one that is separate and one that is coupled.
SOME = [pytest.param(k, marks=() if k in ("dpo", "kto") else pytest.mark.slow) for k in KINDS]


@pytest.mark.parametrize("name", SOME)
def test_microbatches_give_the_dense_gradient(name):
    assert_same(gradient(name, n=4), dense_gradient(name))


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("n", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_fewer_microbatches_give_the_dense_gradient(name, n):
    assert_same(gradient(name, n=n), dense_gradient(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(OBJECTIVES) - set(KINDS)))
def test_every_other_objective_gives_the_dense_gradient(name):
    assert_same(gradient(name, n=4), dense_gradient(name))


@pytest.mark.parametrize("name", SOME)
def test_chunks_of_the_head_give_the_dense_gradient(name):
    assert_same(gradient(name, n=2, chunks=4), dense_gradient(name))


@pytest.mark.parametrize("axes", MESHES)
def test_eight_devices_give_the_dense_gradient(axes):
    assert_same(gradient("dpo", mesh=make_mesh(MESHES[axes])), dense_gradient("dpo"))


def test_eight_devices_give_the_dense_gradient_of_a_reward_head():
    mesh = make_mesh(MESHES["mixed"])
    assert_same(gradient("bradley_terry", mesh=mesh), dense_gradient("bradley_terry"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "slpo", "bco", "kto", "gpm"])
@pytest.mark.parametrize("axes", MESHES)
def test_eight_devices_give_the_dense_gradient_of_every_kind(name, axes):
    assert_same(gradient(name, mesh=make_mesh(MESHES[axes])), dense_gradient(name))


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_devices_and_microbatches_together_give_the_dense_gradient(name):
    mesh = make_mesh(Mesh(data=1, fsdp=2, tensor=2), jax.devices()[:4])
    assert_same(gradient(name, mesh=mesh, n=2, chunks=2), dense_gradient(name))


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_does_not_change_the_gradient(remat):
    assert_same(gradient("dpo", remat=remat), dense_gradient("dpo"))


@pytest.mark.parametrize(
    "name", ["dpo", "kto", *(pytest.param(k, marks=pytest.mark.slow) for k in ("slpo", "inpo"))]
)
def test_a_cached_reference_gives_the_gradient_of_a_live_one(name):
    assert_same(gradient(name, cached=True), dense_gradient(name))


@pytest.mark.parametrize("name", ["dpo", "kto", pytest.param("info_nca", marks=pytest.mark.slow)])
def test_unpacked_and_unshared_rows_give_the_same_gradient(name):
    from lib.packing import unshared_batch

    items = some_examples(OBJECTIVES[name].layout, B)
    responses = items[0].responses
    batch = unshared_batch(
        items, np.arange(B), responses=responses, microbatches=2, shards=1, max_scored=T
    )
    assert_same(gradient(name, batch=batch), dense_gradient(name))


@pytest.mark.parametrize("n", [1, 4])
def test_responses_in_several_spans_and_branches_give_the_dense_gradient(n):
    rng = np.random.default_rng(0)
    items = [in_spans(e, rng) for e in some_examples(layouts.PAIRS, B)]
    objective = OBJECTIVES["dpo"]
    mesh = one_device()
    with jax.set_mesh(mesh):
        model = small_model(mesh)
        params, ref = parameters(model, 0), parameters(model, 1)
        plain = jax.jit(
            jax.value_and_grad(lambda p: dense_loss(objective, {}, model, p, ref, items))
        )
        want = jax.tree.map(np.asarray, plain(params))
    assert_same(gradient("dpo", batch=batch_of(items, n)), want)


@pytest.mark.parametrize("name", SOME)
def test_an_example_of_weight_zero_has_no_influence(name):
    items = some_examples(OBJECTIVES[name].layout, B)
    strangers = some_examples(OBJECTIVES[name].layout, 2 * B, seed=7)[:B]
    scores = OBJECTIVES[name].head({})
    batch = batch_of([*items, *strangers], n=2, scores=scores)
    batch = batch._replace(weight=np.where(batch.example < B, 1.0, 0.0).astype(np.float32))
    assert_same(gradient(name, batch=batch), dense_gradient(name))


WEIGHTS = (0.5, 2.0, 1.0, 3.0, 0.25, 1.5, 1.0, 4.0)


@pytest.mark.parametrize(("mesh", "n"), [("data", 1), ("tensor", 2)])
@pytest.mark.parametrize("name", SOME)
def test_weights_multiply_the_losses_of_examples_however_the_batch_is_divided(name, mesh, n):
    got = gradient(name, mesh=make_mesh(MESHES[mesh]), n=n, weights=WEIGHTS)
    assert_same(got, dense_gradient(name, WEIGHTS))


@pytest.mark.slow
def test_the_state_counts_the_batch_once_whatever_the_microbatches():
    states = [gradient("bco", n=n)[2] for n in (1, 2, 4)]
    chex.assert_trees_all_close(states[0], states[1], rtol=1e-5)
    chex.assert_trees_all_close(states[0], states[2], rtol=1e-5)


def trained(n, steps=3):
    objective = OBJECTIVES["dpo"]
    mesh = one_device()
    items = some_examples(layouts.PAIRS, B)
    with jax.set_mesh(mesh):
        model = small_model(mesh)
        params, ref_params = parameters(model), parameters(model)
        tx = optax.adamw(1e-2)
        state = TrainState(params, tx.init(params), jnp.int32(0), None)
        task = Task(objective, {}, model.forward)
        step = jax.jit(lambda s, b, r: train_step([task], tx, s, [b], Fixed(reference=r)))
        losses = []
        for _ in range(steps):
            state, out = step(state, put_batch(batch_of(items, n), mesh), ref_params)
            losses.append(float(out.loss))
    return state, losses


def test_training_lowers_the_loss_from_log_two():
    state, losses = trained(1)
    np.testing.assert_allclose(losses[0], np.log(2), rtol=1e-6)
    assert losses == sorted(losses, reverse=True)
    assert int(state.step) == 3


def test_evaluation_adds_up_to_the_loss_of_the_whole_data():
    objective = OBJECTIVES["dpo"]
    mesh = one_device()
    items = some_examples(layouts.PAIRS, B)
    with jax.set_mesh(mesh):
        model = small_model(mesh)
        params, ref_params = parameters(model, 0), parameters(model, 1)
        task = Task(objective, {}, model.forward)

        def run(items):
            sums, _ = eval_step(task, params, None, put_batch(batch_of(items), mesh), ref_params)
            return np.asarray(sums.terms, np.float64)

        whole = run(items)
        parts = run(items[:6]) + run([*items[6:], None, None, None, None])
    np.testing.assert_allclose(whole, parts, rtol=1e-6)


def test_a_metric_is_averaged_over_the_examples_that_have_it():
    values = jnp.array([1.0, jnp.nan, 5.0, 9.0])
    total, count = weighted_sum(values, jnp.array([1.0, 1.0, 1.0, 0.0]))
    assert (float(total), float(count)) == (6.0, 2.0)


def test_an_unknown_hyper_parameter_is_refused_before_tracing():
    with pytest.raises(TypeError, match="did you mean 'beta'"):
        Task(OBJECTIVES["dpo"], {"betta": 0.1}, lambda *a: a)


def test_the_update_is_compiled_with_the_options_of_its_mesh(monkeypatch):
    monkeypatch.setattr(step, "repeatable", lambda mesh: {"xla_no_such_option": True})
    mesh = one_device()
    model, rule = small_model(mesh), Rule(Optimizer(), 987)  # so many that no other test shares it
    task = Task(OBJECTIVES["sft"], {}, model.forward)
    abstract = abstract_state(model, rule.tx(), [task])
    batch = put_batch(batch_of(some_examples(layouts.DEMOS, B)), mesh)
    with jax.set_mesh(mesh):
        lowered = Step([task], rule, abstract, mesh).lower(abstract, [batch], Fixed())
        with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
            lowered.compile()
