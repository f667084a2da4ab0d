import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lib.objectives import draw_columns
from lib.steps import T, dense_loss, parameters, small_model, some_examples

from jaxalign.core.sharding import batch_shards, make_mesh, put_batch
from jaxalign.data.pack import pack
from jaxalign.objectives import OBJECTIVES
from jaxalign.settings import Mesh
from jaxalign.update import step
from jaxalign.update.forward import Task, sequence_stats
from jaxalign.update.state import abstract_state
from jaxalign.update.step import (
    TrainState,
    eval_step,
    jitted_step,
    train_step,
    value_and_grad,
    weighted_mean,
)

B = 8
# One objective of each kind: per token, paired, coupled with state or frozen rows, ranked, with
# context that is not scored, with a reward head.
KINDS = ["sft", "dpo", "slpo", "bco", "kto", "info_nca", "rdpo", "gpm"]
# Each kind is tested; the fast tests have one that is separate and one that is coupled.
SOME = [pytest.param(k, marks=() if k in ("dpo", "kto") else pytest.mark.slow) for k in KINDS]


def batch_of(items, n=1, shards=1, chunks=1, scores=0):
    return pack(
        items,
        np.arange(len(items)),
        responses=len(items[0].responses),
        microbatches=n,
        shards=shards,
        chunks=chunks,
        row_length=64,
        max_scored=T,
        scores=scores,
    )


def examples_of(objective):
    """Examples with every column that the objective reads from the data."""
    columns = draw_columns(np.random.default_rng(0), B)
    return [
        e._replace(
            columns=e.columns | {k: float(columns[k][i]) for k in objective.columns if k in columns}
        )
        for i, e in enumerate(some_examples(objective.data.__name__, B))
    ]


def gradient(name, *, mesh=None, n=1, chunks=1, remat="none", batch=None, cached=False):
    """((loss, gradient, next state), gradient of the dense mathematics) of one objective."""
    objective = OBJECTIVES[name]
    mesh = mesh or make_mesh(Mesh(), jax.devices()[:1])
    items = examples_of(objective)
    with jax.set_mesh(mesh):
        scores = objective.head({})
        model = small_model(mesh, remat, scores)
        params, ref_params = parameters(model, 0), parameters(model, 1)
        task = Task(objective, {}, model.forward)
        if batch is None:
            batch = batch_of(items, n, batch_shards(mesh), chunks, scores=scores)
        for field, wanted, seed in (("ref", cached, 1), ("start", objective.uses_start, 2)):
            if wanted:
                stats = jax.jit(
                    lambda p, b: jax.lax.map(lambda c: sequence_stats(task, p, c).token, b)
                )(parameters(model, seed), put_batch(batch, mesh))
                found = {k: np.asarray(v) for k, v in stats.items()}
                batch = batch._replace(**{field: found})
        state = objective.init_state() if objective.init_state else None
        run = jax.jit(lambda p, r, b: value_and_grad(task, p, b, state=state, ref_params=r))
        live = None if cached or not objective.uses_ref else ref_params
        (loss, (_, state)), grads = run(params, live, put_batch(batch, mesh))
    return jax.tree.map(np.asarray, (loss, grads, state))


@pytest.fixture(scope="module")
def dense():
    """Objective name -> loss and gradient of the plain mathematics, computed once each."""
    known = {}

    def get(name):
        if name not in known:
            objective = OBJECTIVES[name]
            mesh = make_mesh(Mesh(), jax.devices()[:1])
            model = small_model(mesh, scores=objective.head({}))
            params, ref_params, start = (parameters(model, seed) for seed in (0, 1, 2))
            items = examples_of(objective)
            state = objective.init_state() if objective.init_state else None
            with jax.set_mesh(mesh):
                known[name] = jax.tree.map(
                    np.asarray,
                    jax.jit(
                        jax.value_and_grad(
                            lambda p: dense_loss(
                                objective, {}, model, p, ref_params, items, state, start
                            )
                        )
                    )(params),
                )
        return known[name]

    return get


def assert_same(got, want):
    """Losses and gradients agree to 1e-5 of the largest entry of each parameter."""
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    for path, w in jax.tree_util.tree_leaves_with_path(want[1]):
        g = dict(jax.tree_util.tree_leaves_with_path(got[1]))[path]
        error = np.abs(g - w).max() / np.abs(w).max()
        assert error < 1e-5, f"{jax.tree_util.keystr(path)}: {error}"


@pytest.mark.parametrize(
    "name", [pytest.param(k, marks=pytest.mark.slow if k in ("rdpo", "gpm") else ()) for k in KINDS]
)
def test_microbatches_give_the_dense_gradient(dense, name):
    assert_same(gradient(name, n=4), dense(name))


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("n", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_fewer_microbatches_give_the_dense_gradient(dense, name, n):
    assert_same(gradient(name, n=n), dense(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(OBJECTIVES) - set(KINDS)))
def test_every_other_objective_gives_the_dense_gradient(dense, name):
    assert_same(gradient(name, n=4), dense(name))


@pytest.mark.parametrize("name", SOME)
def test_chunks_of_the_head_give_the_dense_gradient(dense, name):
    assert_same(gradient(name, n=2, chunks=4), dense(name))


MESHES = {
    "data": Mesh(data=8),
    "fsdp": Mesh(data=1, fsdp=8),
    "tensor": Mesh(data=4, tensor=2),
    "mixed": Mesh(data=2, fsdp=2, tensor=2),
}


@pytest.mark.parametrize("axes", MESHES)
def test_eight_devices_give_the_dense_gradient(dense, axes):
    assert_same(gradient("dpo", mesh=make_mesh(MESHES[axes])), dense("dpo"))


def test_eight_devices_give_the_dense_gradient_of_a_reward_head(dense):
    mesh = make_mesh(MESHES["mixed"])
    assert_same(gradient("bradley_terry", mesh=mesh), dense("bradley_terry"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "slpo", "bco", "kto", "gpm"])
@pytest.mark.parametrize("axes", MESHES)
def test_eight_devices_give_the_dense_gradient_of_every_kind(dense, name, axes):
    assert_same(gradient(name, mesh=make_mesh(MESHES[axes])), dense(name))


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_devices_and_microbatches_together_give_the_dense_gradient(dense, name):
    mesh = make_mesh(Mesh(data=1, fsdp=2, tensor=2), jax.devices()[:4])
    assert_same(gradient(name, mesh=mesh, n=2, chunks=2), dense(name))


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_does_not_change_the_gradient(dense, remat):
    assert_same(gradient("dpo", remat=remat), dense("dpo"))


@pytest.mark.parametrize(
    "name", ["dpo", "kto", *(pytest.param(k, marks=pytest.mark.slow) for k in ("slpo", "inpo"))]
)
def test_a_cached_reference_gives_the_gradient_of_a_live_one(dense, name):
    assert_same(gradient(name, cached=True), dense(name))


@pytest.mark.parametrize("name", ["dpo", "kto", pytest.param("info_nca", marks=pytest.mark.slow)])
def test_unpacked_and_unshared_rows_give_the_same_gradient(dense, name):
    from lib.packing import unshared_batch

    items = some_examples(OBJECTIVES[name].data.__name__, B)
    responses = len(items[0].responses)
    batch = unshared_batch(
        items, np.arange(B), responses=responses, microbatches=2, shards=1, max_scored=T
    )
    assert_same(gradient(name, batch=batch), dense(name))


@pytest.mark.parametrize("n", [1, 4])
def test_responses_that_begin_with_context_give_the_dense_gradient(n):
    rng = np.random.default_rng(0)
    items = [
        e._replace(context=tuple(int(rng.integers(len(r))) for r in e.responses))
        for e in some_examples("Pairs", B)
    ]
    objective = OBJECTIVES["dpo"]
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        model = small_model(mesh)
        params, ref = parameters(model, 0), parameters(model, 1)
        plain = jax.jit(
            jax.value_and_grad(lambda p: dense_loss(objective, {}, model, p, ref, items))
        )
        want = jax.tree.map(np.asarray, plain(params))
    assert_same(gradient("dpo", batch=batch_of(items, n)), want)


@pytest.mark.parametrize("name", SOME)
def test_an_example_of_weight_zero_has_no_influence(dense, name):
    items = some_examples(OBJECTIVES[name].data.__name__, B)
    strangers = some_examples(OBJECTIVES[name].data.__name__, 2 * B, seed=7)[:B]
    scores = OBJECTIVES[name].head({})
    batch = batch_of([*items, *strangers], n=2, scores=scores)
    batch = batch._replace(weight=np.where(batch.example < B, 1.0, 0.0).astype(np.float32))
    assert_same(gradient(name, batch=batch), dense(name))


@pytest.mark.slow
def test_the_state_counts_the_batch_once_whatever_the_microbatches():
    states = [gradient("bco", n=n)[2] for n in (1, 2, 4)]
    chex.assert_trees_all_close(states[0], states[1], rtol=1e-5)
    chex.assert_trees_all_close(states[0], states[2], rtol=1e-5)


def trained(n, steps=3):
    objective = OBJECTIVES["dpo"]
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    items = some_examples("Pairs", B)
    with jax.set_mesh(mesh):
        model = small_model(mesh)
        params, ref_params = parameters(model), parameters(model)
        tx = optax.adamw(1e-2)
        state = TrainState(params, tx.init(params), jnp.int32(0), None)
        task = Task(objective, {}, model.forward)
        step = jax.jit(lambda s, b, r: train_step(task, tx, s, b, r))
        losses = []
        for _ in range(steps):
            state, out = step(state, put_batch(batch_of(items, n), mesh), ref_params)
            losses.append(float(out["loss"]))
    return state, losses


def test_training_lowers_the_loss_from_log_two():
    state, losses = trained(1)
    np.testing.assert_allclose(losses[0], np.log(2), rtol=1e-6)
    assert losses == sorted(losses, reverse=True)
    assert int(state.step) == 3


def test_evaluation_adds_up_to_the_loss_of_the_whole_data():
    objective = OBJECTIVES["dpo"]
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    items = some_examples("Pairs", B)
    with jax.set_mesh(mesh):
        model = small_model(mesh)
        params, ref_params = parameters(model, 0), parameters(model, 1)
        task = Task(objective, {}, model.forward)

        def run(items):
            out = eval_step(task, params, None, put_batch(batch_of(items), mesh), ref_params)
            return np.asarray(out["terms"], np.float64)

        whole = run(items)
        parts = run(items[:6]) + run([*items[6:], None, None, None, None])
    np.testing.assert_allclose(whole, parts, rtol=1e-6)


def test_a_metric_is_averaged_over_the_examples_that_have_it():
    values = jnp.array([1.0, jnp.nan, 5.0, 9.0])
    total, count = weighted_mean(values, jnp.array([1.0, 1.0, 1.0, 0.0]))
    assert (float(total), float(count)) == (6.0, 2.0)


def test_an_unknown_hyper_parameter_is_refused_before_tracing():
    with pytest.raises(TypeError, match="did you mean 'beta'"):
        Task(OBJECTIVES["dpo"], {"betta": 0.1}, lambda *a: a)


def test_the_update_is_compiled_with_the_options_of_its_mesh(monkeypatch):
    monkeypatch.setattr(step, "repeatable", lambda mesh: {"xla_no_such_option": True})
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    model, tx = small_model(mesh), optax.sgd(0.1)
    task = Task(OBJECTIVES["sft"], {}, model.forward)
    abstract = abstract_state(model, tx, OBJECTIVES["sft"])
    batch = put_batch(batch_of(some_examples("Demos", B)), mesh)
    with jax.set_mesh(mesh):
        lowered = jitted_step(task, tx, abstract, mesh).lower(abstract, batch, None, None)
        with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
            lowered.compile()
