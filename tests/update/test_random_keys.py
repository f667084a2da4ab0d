"""What an objective draws at random."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lib import runs as h
from lib.objectives import call, draw
from lib.steps import B, batch_of, parameters, small_model, some_examples
from lib.worked import PAIR, REF_PAIR, rows

from jaxalign.core import layouts
from jaxalign.core.sharding import batch_shards, make_mesh, put_batch
from jaxalign.core.stats import reduce_tokens
from jaxalign.objectives import OBJECTIVES
from jaxalign.settings import Mesh
from jaxalign.update.forward import Task
from jaxalign.update.gradient import value_and_grad

SAMPO = OBJECTIVES["sampo"]


def task(seed=0):
    return Task(SAMPO, {}, lambda *args: args, seed=seed)


def test_a_key_belongs_to_an_example_wherever_it_lies():
    here, there = task().keys(jnp.array([[3, 1], [2, 0]]), 5), task().keys(jnp.arange(4), 5)
    np.testing.assert_array_equal(
        jax.random.key_data(here), jax.random.key_data(there)[jnp.array([[3, 1], [2, 0]])]
    )


def test_keys_differ_between_examples_updates_and_seeds():
    example = jnp.arange(3)
    keys = [task().keys(example, 0), task().keys(example, 1), task(1).keys(example, 0)]
    data = np.concatenate([jax.random.key_data(k) for k in keys])
    assert len(np.unique(data, axis=0)) == 9


def test_an_objective_without_a_key_is_given_none():
    assert Task(OBJECTIVES["dpo"], {}, lambda *args: args).keys(jnp.arange(3), 0) is None


def updates(step, n=1, devices=1, seed=0):
    mesh = make_mesh(Mesh(), jax.devices()[:devices])
    with jax.set_mesh(mesh):
        model = small_model(mesh)
        params, ref = parameters(model, 0), parameters(model, 1)
        batch = put_batch(batch_of(some_examples(layouts.PAIRS, B), n, batch_shards(mesh)), mesh)
        of = Task(SAMPO, {}, model.forward, seed=seed)
        run = jax.jit(lambda p, r, b, s: value_and_grad(of, p, b, ref_params=r, step=s).loss)
        return float(run(params, ref, batch, jnp.int32(step)))


@pytest.mark.slow
def test_a_draw_does_not_depend_on_microbatches_or_devices():
    losses = [updates(3, n, devices) for n, devices in ((1, 1), (4, 1), (2, 2))]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)


def test_another_update_and_another_seed_draw_anew():
    losses = {round(x, 4) for x in (updates(3), updates(4), updates(3, seed=1))}
    assert len(losses) == 3


def test_sampo_at_the_reference_is_log_two():
    case = draw(SAMPO)
    loss = call(SAMPO, case | {"policy": case["ref"]})[0]
    np.testing.assert_allclose(loss.terms[0].total, np.log(2), rtol=1e-6)


def test_worked_value_of_sampo():
    values, masks = rows(**PAIR)
    ref, _ = rows(**REF_PAIR)
    # A key of which the five smallest of seven draws are those of the worked value.
    kept = next(
        key
        for key in jax.vmap(jax.random.key)(jnp.arange(200))
        if set(np.argsort(jax.random.uniform(key, (7,)))[:5].tolist()) == {0, 2, 3, 5, 6}
    )

    def loss(values):
        policy, base = (
            SAMPO.data(**{r: reduce_tokens({"logp": v[r]}, masks[r]) for r in v})
            for v in (values, ref)
        )
        return SAMPO.bind()(policy=policy, ref=base, key=kept[None])[0].terms[0].total.sum()

    value, grad = jax.value_and_grad(loss)(values)
    np.testing.assert_allclose(value, 0.6881596805079, rtol=1e-6)
    g = 0.04975000208
    np.testing.assert_allclose(grad["chosen"][0, :5], -g, rtol=2e-6)
    np.testing.assert_allclose(grad["rejected"][0], [g, 0, g, g, 0, g, g], rtol=2e-6)


@pytest.mark.slow
def test_a_run_that_goes_on_draws_what_a_whole_one_does(inputs, tmp_path):
    whole = h.recipe(inputs, tmp_path / "whole", "sampo")
    h.run(whole, h.one_device())
    h.copy_folder(tmp_path / "whole", tmp_path / "half")
    h.rewind(tmp_path / "half" / "sampo")
    h.run(h.replaced(whole, tmp_path / "half"), h.one_device())
    lines = [h.repeated(h.metrics(tmp_path / d / "sampo")) for d in ("whole", "half")]
    assert lines[0] == lines[1]
    a, b = (h.tensors(tmp_path / d / "sampo" / "model") for d in ("whole", "half"))
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("seed", [0, 1])
def test_a_longer_response_is_thinned_to_the_shorter_one(seed):
    case = draw(SAMPO, seed)
    lengths = {r: m.sum(-1) for r, m in case["masks"].items()}
    grad = jax.grad(lambda policy: call(SAMPO, case | {"policy": policy})[0].terms[0].total.sum())(
        case["policy"]
    )
    for row in grad:
        kept = (grad[row] != 0).sum(-1)
        np.testing.assert_array_equal(kept, jnp.minimum(*lengths.values()))
