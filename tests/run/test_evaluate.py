import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lib import runs as h
from lib import steps as helpers_step

from jaxalign.core.sharding import batch_shards, make_mesh
from jaxalign.data.loader import Loader
from jaxalign.data.store import Examples
from jaxalign.errors import UserError
from jaxalign.objectives import OBJECTIVES
from jaxalign.run.evaluate import evaluator, means
from jaxalign.settings import Mesh
from jaxalign.update.forward import Task
from jaxalign.update.step import Fixed

N = 11
ONE = h.one_device()


@functools.cache
def case(name):
    """A model's parameters, a reference's, and a data set for an objective."""
    model = helpers_step.small_model(ONE)
    params, ref_params = (helpers_step.parameters(model, seed) for seed in (0, 1))
    layout = OBJECTIVES[name].layout
    items = helpers_step.some_examples(layout, N)
    return params, ref_params, Examples.of(items)


def evaluate(name, *, batch_size, microbatches=1, mesh=ONE, state=None):
    params, ref_params, examples = case(name)
    model = helpers_step.small_model(mesh)
    shardings = jax.tree.map(lambda x: x.sharding, model.abstract)
    params, ref_params = (
        jax.device_put(jax.tree.map(np.asarray, tree), shardings) for tree in (params, ref_params)
    )
    objective = OBJECTIVES[name]
    loader = Loader(
        examples,
        batch_size=batch_size,
        microbatches=microbatches,
        shards=batch_shards(mesh),
        row_length=64,
        shapes=2,
        seed=0,
    )
    with jax.set_mesh(mesh):
        run = evaluator(
            Task(objective, {}, model.forward),
            mesh,
            Fixed(reference=ref_params if objective.uses_ref else None),
        )
        return run(params, state, loader.sequential())


def dense(name):
    """The loss over the whole data set from full logits of padded rows, in one piece."""
    params, ref_params, examples = case(name)
    model = helpers_step.small_model(ONE)
    return float(helpers_step.dense_loss(OBJECTIVES[name], {}, model, params, ref_params, examples))


@pytest.mark.parametrize("name", ["sft", "dpo"])
@pytest.mark.parametrize(
    "batch_size", [11, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 4, 16))]
)
def test_the_loss_is_the_dense_mean_whatever_the_batch_size(name, batch_size):
    assert evaluate(name, batch_size=batch_size)["loss"] == pytest.approx(dense(name), rel=1e-5)


def test_every_metric_is_the_same_whatever_the_batch_size():
    want = evaluate("dpo", batch_size=11)
    assert len(want) > 5
    for batch_size, microbatches in ((4, 1), (4, 2), (16, 4)):
        got = evaluate("dpo", batch_size=batch_size, microbatches=microbatches)
        assert got == pytest.approx(want, rel=1e-5, abs=1e-6)


@pytest.mark.slow
def test_every_metric_is_the_same_on_a_mesh():
    want = evaluate("dpo", batch_size=11)
    got = evaluate("dpo", batch_size=8, mesh=make_mesh(Mesh(data=2, fsdp=2, tensor=2)))
    assert got == pytest.approx(want, rel=1e-4, abs=1e-5)


def test_the_running_state_is_read_and_not_written():
    state = OBJECTIVES["bco"].init_state()
    before = jax.tree.map(np.array, state)
    first = evaluate("bco", batch_size=4, state=state)
    jax.tree.map(np.testing.assert_array_equal, state, before)
    assert evaluate("bco", batch_size=4, state=state) == first
    moved = jax.tree.map(lambda x: x + jnp.asarray(1, x.dtype), state)
    assert evaluate("bco", batch_size=4, state=moved)["loss"] != first["loss"]


@pytest.mark.parametrize("batch_size", [11, 4])
def test_the_standard_error_of_a_share_is_that_of_independent_examples(batch_size):
    found = evaluate("dpo", batch_size=batch_size)
    share = found["rewards/accuracies"]
    want = math.sqrt(share * (1 - share) / (N - 1))
    assert found.standard_errors["rewards/accuracies"] == pytest.approx(want, rel=1e-5)
    assert 0 < share < 1


def test_the_loss_has_no_standard_error():
    assert "loss" not in evaluate("dpo", batch_size=11).standard_errors


def test_no_held_out_examples_are_refused():
    params, _, _ = case("sft")
    task = Task(OBJECTIVES["sft"], {}, helpers_step.small_model(ONE).forward)
    with pytest.raises(UserError, match="the held-out data is empty"):
        evaluator(task, ONE)(params, None, [])


def test_a_metric_that_no_example_has_is_left_out():
    sums = {"a": (np.float64(3), np.float64(2)), "b": (np.float64(0), np.float64(0))}
    assert means(sums) == {"a": 1.5}
    assert math.isclose(means(sums)["a"], 1.5)
