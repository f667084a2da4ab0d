"""The weighted sum of several losses, each over its own batch."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lib.steps import (
    MESHES,
    B,
    assert_same,
    batch_of,
    dense_gradient,
    examples_of,
    gradient,
    one_device,
    parameters,
    small_model,
)

from jaxalign.core.sharding import batch_shards, make_mesh, put_batch
from jaxalign.objectives import OBJECTIVES
from jaxalign.settings import Mesh, Reference
from jaxalign.update import forward, step
from jaxalign.update import gradient as gradient_module
from jaxalign.update.forward import Task, scored_hidden, sequence_stats
from jaxalign.update.gradient import Valued
from jaxalign.update.state import TermState, TrainState, abstract_state, initial_state
from jaxalign.update.step import Fixed, train_step, weighted_gradient

WEIGHTS = {"dpo": 1.0, "npo": -0.2, "sft": 0.3, "bco": 0.5, "hypo_kl": 0.1} | {
    "slpo": 0.7,
    "sampo": -0.4,
    "bco_pair": 2.0,
}
OF_EXAMPLES = (0.5, 2.0, 1.0, 3.0, 0.25, 1.5, 1.0, 4.0)
CELLS = {
    "one device": (None, 1),
    "2 microbatches": (None, 2),
    "4 microbatches": (None, 4),
    "8 devices": (make_mesh(MESHES["data"]), 1),
    "8 devices, 2 microbatches": (make_mesh(MESHES["mixed"]), 2),
}
SOME = ("dpo", "sft")
FAST = ("2 microbatches", "8 devices")
CASES = [
    *(
        pytest.param(SOME, c, id=f"dpo + sft, {c}", marks=() if c in FAST else pytest.mark.slow)
        for c in CELLS
    ),
    *(
        pytest.param(names, "2 microbatches", id=" + ".join(names), marks=pytest.mark.slow)
        for names in (("sft", "bco"), ("hypo_kl", "dpo", "npo"))
    ),
]


def combined(names, mesh=None, n=1, cached=(), sizes=None, remat="none", shared=False):
    """(loss, gradient, objective states) of terms by the step, on one random batch each.

    If `shared`, the terms after the first take its forward pass.
    """
    mesh, sizes = mesh or one_device(), sizes or {}
    with jax.set_mesh(mesh):
        model = small_model(mesh, remat)
        params, ref_params = parameters(model, 0), parameters(model, 1)
        tasks, batches = tasks_of(names, model, shared=shared), []
        for task in tasks:
            items = examples_of(task.objective, OF_EXAMPLES)[: sizes.get(task.term, B)]
            batch = put_batch(batch_of(items, n, batch_shards(mesh)), mesh)
            if task.term in cached:
                batch = batch._replace(ref=statistics(task, ref_params, batch))
            batches.append(batch)
        terms = [TermState(t.objective.init_state and t.objective.init_state()) for t in tasks]
        live = [t.objective.uses_ref and t.term not in cached for t in tasks]
        fixed = Fixed.of(None, [ref_params if one else None for one in live])
        state = TrainState.of(params, (), jnp.int32(0), terms)
        found = jax.jit(functools.partial(weighted_gradient, tasks))(state, batches, fixed)
        states = [term.state for term in found.terms]
    return jax.tree.map(np.asarray, (found.loss, found.grads, states))


def tasks_of(names, model, *, shared=False):
    return [
        Task(
            OBJECTIVES[name],
            {},
            model.forward,
            weight=WEIGHTS[name],
            term=name,
            batch_of=names[0] if shared and i else None,
        )
        for i, name in enumerate(names)
    ]


def statistics(task, params, batch):
    return jax.jit(lambda p, b: jax.lax.map(lambda c: sequence_stats(task, p, c).token, b))(
        params, batch
    )


@functools.cache
def of_cells(names, cells):
    """`combined` on one of `CELLS`."""
    return combined(names, *CELLS[cells])


def summed(names, found):
    """The weighted sum of (loss, gradient) of single objectives, in float64."""
    parts = [scaled(name, found(name)) for name in names]
    return functools.reduce(lambda a, b: jax.tree.map(np.add, a, b), parts)


def scaled(name, found):
    return jax.tree.map(lambda x: WEIGHTS[name] * np.float64(x), found[:2])


def relative_error(names, got, single):
    """The norm of the error of a gradient, relative to the norms of its summands."""
    parts = [scaled(name, single(name))[1] for name in names]
    want = functools.reduce(lambda a, b: jax.tree.map(np.add, a, b), parts)
    error = optax.tree.norm(jax.tree.map(np.subtract, got[1], want))
    return float(error / sum(optax.tree.norm(part) for part in parts))


@pytest.mark.parametrize(("names", "cells"), CASES)
def test_the_gradient_is_the_weighted_sum_of_the_single_gradients(names, cells):
    mesh, n = CELLS[cells]

    def single(name):
        return gradient(name, mesh=mesh, n=n, weights=OF_EXAMPLES)

    got = of_cells(names, cells)
    np.testing.assert_allclose(got[0], summed(names, single)[0], rtol=1e-6)
    assert relative_error(names, got, single) < 1e-6  # float32: the programs are not the same


@pytest.mark.parametrize(("names", "cells"), CASES)
def test_the_gradient_is_the_weighted_sum_of_the_dense_gradients(names, cells):
    want = summed(names, lambda name: dense_gradient(name, OF_EXAMPLES))
    assert_same(of_cells(names, cells), want)


SHARED = ("dpo", "slpo", "sampo")
COUPLED = ("slpo", "bco_pair", "dpo")
SHARING = [
    pytest.param(SHARED, "2 microbatches", id="separable"),
    pytest.param(COUPLED, "2 microbatches", id="coupled", marks=pytest.mark.slow),
    *(
        pytest.param(names, cells, id=f"{cells}, {names[1]}", marks=pytest.mark.slow)
        for names in (SHARED, COUPLED)
        for cells in ("one device", "8 devices, 2 microbatches")
    ),
]


@pytest.mark.parametrize(("names", "cells"), SHARING)
def test_one_forward_pass_for_all_gives_the_loss_and_the_gradient_of_one_for_each(names, cells):
    mesh, n = CELLS[cells]
    got = combined(names, mesh, n, shared=True)
    assert_same(got, of_cells(names, cells))
    np.testing.assert_allclose(got[0], of_cells(names, cells)[0], rtol=1e-6)
    chex.assert_trees_all_close(got[2], of_cells(names, cells)[2], rtol=1e-6)


def test_a_shared_forward_pass_gives_the_dense_gradient():
    got = combined(SHARED, n=2, shared=True)
    assert_same(got, summed(SHARED, lambda name: dense_gradient(name, OF_EXAMPLES)))


@pytest.mark.parametrize("names", [SHARED, pytest.param(COUPLED, marks=pytest.mark.slow)])
def test_terms_with_the_same_batch_run_the_policy_once(names, monkeypatch):
    calls = []

    def counted(task, params, cells, **options):
        calls.append(params)
        return scored_hidden(task, params, cells, **options)

    for module in (forward, gradient_module):
        monkeypatch.setattr(module, "scored_hidden", counted)

    def passes(names, **options):
        """The forward passes of the policy, without the one of each cached reference."""
        calls.clear()
        combined(names, cached=names, **options)
        return len(calls) - len(names)

    assert passes(names, shared=True) == passes(names[1:2]) > 0


@pytest.mark.slow
def test_a_cached_and_a_live_reference_give_the_gradient_of_two_live_ones():
    names = ("hypo_kl", "dpo")
    assert_same(combined(names, cached=("dpo",)), combined(names))


@pytest.mark.slow
def test_each_loss_is_over_its_own_batch():
    def single(name):
        items = examples_of(OBJECTIVES[name], OF_EXAMPLES)
        return gradient(name, n=2, batch=batch_of(items[: 4 if name == "sft" else B], 2))

    got = combined(SOME, n=2, sizes={"sft": 4})
    np.testing.assert_allclose(got[0], summed(SOME, single)[0], rtol=1e-6)
    assert relative_error(SOME, got, single) < 1e-6


def test_the_state_of_each_objective_is_that_of_the_objective_alone():
    none, state = of_cells(("sft", "bco"), "2 microbatches")[2]
    assert none is None
    chex.assert_trees_all_close(state, gradient("bco", n=2, weights=OF_EXAMPLES)[2], rtol=1e-6)


def test_half_precision_gradients_are_summed_in_float32(monkeypatch):
    ones = {"w": jnp.ones(3, jnp.bfloat16)}

    def alone(summands, *more):
        (own,) = summands
        weighted = jax.tree.map(lambda x: (own.task.weight * x).astype(x.dtype), ones)
        return weighted, [Valued(jnp.ones(()), {}, None, None)]

    monkeypatch.setattr(step, "sum_and_grad", alone)
    small = 2.0**-9  # 1 + small is 1 in bfloat16
    task = Task(OBJECTIVES["sft"], {}, lambda *args: args, term="own")
    others = [dataclasses.replace(task, weight=small, term=f"other {i}") for i in range(4)]
    tasks = [task, *others]
    state = TrainState.of(ones, (), jnp.int32(0), [TermState()] * 5)
    found = weighted_gradient(tasks, state, [None] * 5, Fixed.of(None, [None] * 5)).grads["w"]
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found.astype(jnp.float32), 1 + 4 * small)


def updated(tasks, tx, batches, references):
    """The state and the metrics of one update."""
    mesh = one_device()
    with jax.set_mesh(mesh):
        model = small_model(mesh)
        abstract = abstract_state(model, tx, tasks)
        state = initial_state(parameters(model, 0), tasks, tx, abstract, references)
        run = jax.jit(lambda s, b, f: train_step(tasks, tx, s, b, f))
        found = run(
            state, [put_batch(b, mesh) for b in batches], Fixed.of(None, [None] * len(tasks))
        )
    chex.assert_trees_all_equal_shapes(found[0], abstract)
    return found


def test_the_metrics_of_a_term_begin_with_its_name():
    names = ("sft", "bco")
    model = small_model(one_device())
    items = [examples_of(OBJECTIVES[name]) for name in names]
    tasks = tasks_of(names, model)
    batches = [batch_of(own)._replace(ref={}) for own in items]
    batches[1] = with_reference(tasks[1], batches[1])
    _, found = updated(tasks, optax.sgd(0.1), batches, ())
    assert {name.partition("/")[0] for name in found.sums} == {"sft", "bco"}
    assert {"sft/loss", "sft/logps/response", "bco/loss"} <= set(found.sums)
    losses = {name: float(found.sums[f"{name}/loss"][0]) for name in names}
    assert float(found.loss) == pytest.approx(
        sum(WEIGHTS[name] * loss for name, loss in losses.items()), rel=1e-6
    )
    assert all(name.startswith(("sft/", "bco/")) for name in found.examples)


def with_reference(task, batch):
    mesh = one_device()
    with jax.set_mesh(mesh):
        params = parameters(small_model(mesh), 1)
        stats = statistics(task, params, put_batch(batch, mesh))
    return batch._replace(ref=jax.tree.map(np.asarray, stats))


def test_a_reference_moves_in_the_term_that_asks_for_it():
    model = small_model(one_device())
    first, second = tasks_of(("dpo", "npo"), model)
    second = dataclasses.replace(second, moves=Reference(mode="live", every=1, mix=1.0))
    batches = [batch_of(examples_of(task.objective)) for task in (first, second)]
    batches[0] = with_reference(first, batches[0])
    with jax.set_mesh(one_device()):
        references = [None, parameters(model, 1)]
    state, _ = updated([first, second], optax.sgd(0.1), batches, references)
    assert state.ref_params is None
    chex.assert_trees_all_equal(state.terms[1].ref_params, state.params)


def test_a_stage_with_one_objective_has_the_state_of_older_checkpoints():
    model = small_model(one_device())
    state = abstract_state(model, optax.adamw(0.1), tasks_of(("bco",), model))
    paths = [
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, _ in jax.tree_util.tree_leaves_with_path(state)
    ]
    assert {path.partition(".")[0] for path in paths} == {
        "params", "opt_state", "step", "objective_state",
    }  # fmt: skip


@pytest.mark.slow
def test_several_devices_and_microbatches_give_the_gradient_of_one():
    mesh = make_mesh(Mesh(data=1, fsdp=2, tensor=2), jax.devices()[:4])
    assert_same(combined(SOME, mesh, n=2, remat="full"), combined(SOME))
