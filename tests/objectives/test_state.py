"""Objectives on sampled responses, and those with a state, by their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lib.objectives import reduce
from lib.steps import one_device, parameters, small_model
from lib.worked import sums

from jaxalign.objectives import OBJECTIVES
from jaxalign.objectives.beta_dpo import add_batch, no_gaps
from jaxalign.objectives.f_dpg import Baseline
from jaxalign.objectives.spa import no_margins
from jaxalign.update.forward import Task
from jaxalign.update.state import abstract_state, initial_state

VOCAB = 4
LOGITS = np.array([0.3, -1.2, 0.8, 0.1])
TARGET = np.array([0.1, 0.2, 0.25, 0.45])
BEHAVIOR = np.array([0.4, 0.3, 0.2, 0.1])
DIVERGENCES = {
    "js": lambda t: t * jnp.log(t) - (1 + t) * jnp.log((1 + t) / 2),
    "forward_kl": lambda t: -jnp.log(t),
    "reverse_kl": lambda t: t * jnp.log(t),
    "tv": lambda t: jnp.abs(t - 1) / 2,
    "chi2": lambda t: t + 1 / t,
    "reverse_chi2": lambda t: (t - 1) ** 2,
}


def whole_vocabulary(name, columns, state=None, ref=None, **hyper):
    """Gradient in the logits of a policy of one token, every response being in the batch.

    The weight of a response is its probability under the model that sampled it.
    """
    o = OBJECTIVES[name]
    columns = {k: jnp.asarray(v, jnp.float32) for k, v in columns.items()}

    def loss(logits):
        policy = o.data(sums({"response": jax.nn.log_softmax(logits)[:, None]}))
        out = o.bind(**hyper)(policy=policy, ref=ref, batch=columns, state=state)
        return reduce(out[0], columns["weight"])

    return jax.grad(loss)(jnp.asarray(LOGITS, jnp.float32))


@pytest.mark.parametrize("baseline", [0.0, 0.7])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_f_dpg_gradient_on_every_response_is_that_of_the_divergence(divergence, baseline):
    state = Baseline(mean=jnp.float32(baseline), seen=jnp.float32(1.0))
    columns = {
        "behavior_logp": np.log(BEHAVIOR),
        "target_logp": np.log(TARGET),
        "weight": BEHAVIOR,
    }

    def exact(logits):
        return jnp.sum(TARGET * DIVERGENCES[divergence](jax.nn.softmax(logits) / TARGET))

    got = whole_vocabulary("f_dpg", columns, state, divergence=divergence)
    expected = jax.grad(exact)(jnp.asarray(LOGITS, jnp.float32))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_f_dpg_vanishes_at_the_target():
    o = OBJECTIVES["f_dpg"]
    log_p = np.log(TARGET)
    columns = {"behavior_logp": log_p, "target_logp": log_p, "weight": TARGET}
    policy = o.data(sums({"response": log_p[:, None]}))
    batch = {k: jnp.asarray(v, jnp.float32) for k, v in columns.items()}
    state = o.bind()(policy=policy, batch=batch, state=o.init_state())[2]
    terms = o.bind()(policy=policy, batch=batch, state=state)[0].terms
    np.testing.assert_allclose(terms[0].total, 0.0, atol=1e-6)


@pytest.mark.parametrize("baseline", [0.0, 0.7])
def test_hypo_gradient_on_every_response_is_that_of_the_kl(baseline):
    policy = jax.nn.softmax(jnp.asarray(LOGITS, jnp.float32))
    ref = OBJECTIVES["hypo_kl"].data(sums({"response": np.log(TARGET)[:, None]}))

    def exact(logits):
        p = jax.nn.softmax(logits)
        return 0.3 * jnp.sum(p * (jnp.log(p) - np.log(TARGET)))

    columns = {"baseline": np.full(VOCAB, baseline), "weight": policy}
    got = whole_vocabulary("hypo_kl", columns, ref=ref, lam=0.3)
    expected = jax.grad(exact)(jnp.asarray(LOGITS, jnp.float32))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def paired(gaps):
    """Pairs of one token whose log-ratios differ by `gaps`, nats."""
    n, o = len(gaps), OBJECTIVES["spa"]
    flat = sums({"response": jnp.full((n, 1), -100.0)})
    chosen = sums({"response": jnp.asarray(gaps, jnp.float32)[:, None] - 100.0})
    return o.data(chosen, flat), o.data(flat, flat)


def spa_call(gaps, state, **hyper):
    policy, ref = paired(gaps)
    batch = {"weight": jnp.ones(len(gaps))}
    o = OBJECTIVES["spa"]
    return o.bind(beta=1.0, **hyper)(policy=policy, ref=ref, batch=batch, state=state)


def spa_after(means):
    state = no_margins()
    for mean in means:
        state = spa_call([mean, mean], state)[2]
    return state


def test_spa_threshold_is_the_lowest_tenth_of_the_last_fifty_updates():
    means = np.random.default_rng(0).permutation(70).astype(np.float32)
    ordered = np.sort(means[-50:])
    np.testing.assert_allclose(spa_after(means).threshold, (ordered[5] + ordered[6]) / 2)


def test_spa_threshold_of_few_updates_is_of_those_made():
    np.testing.assert_allclose(spa_after([3.0]).threshold, 3.0)
    np.testing.assert_allclose(spa_after([3.0, 1.0, 8.0]).threshold, 2.0)
    assert no_margins().threshold == -np.inf


def test_spa_doubts_pairs_below_the_threshold_after_the_warmup():
    state = spa_after([1.0, 2.0])
    doubted = [spa_call([1.0, 1.6], state, warmup=n)[1]["doubted"] for n in (0, 1, 2)]
    np.testing.assert_array_equal(doubted, [[1, 0], [1, 0], [0, 0]])


def beta_dpo_call(gaps, state, key=0, **hyper):
    policy, ref = paired(gaps)
    keys = jax.random.split(jax.random.key(key), len(gaps))
    return OBJECTIVES["beta_dpo"].bind(**hyper)(
        policy=policy, ref=ref, batch={"weight": jnp.ones(len(gaps))}, state=state, key=keys
    )


def test_worked_value_of_the_beta_of_a_batch():
    state = no_gaps().replace(mean=jnp.float32((0.6 - 0.11) / 0.9))
    state = beta_dpo_call([1.0, 1.2], state, rho=0.0)[2]
    np.testing.assert_allclose(state.mean, 0.6, rtol=1e-6)
    beta = beta_dpo_call([1.0, 1.2], state, rho=0.0)[1]["beta"]
    np.testing.assert_allclose(beta, 0.13, rtol=1e-6)


def test_beta_dpo_averages_the_mean_and_the_deviation_of_batches():
    first, second = np.random.default_rng(0).normal(3.0, 2.0, size=(2, 8))
    state = beta_dpo_call(second, beta_dpo_call(first, no_gaps())[2])[2]
    mean, std = (0.09 * f(first) + 0.1 * f(second) for f in (np.mean, lambda x: np.std(x, ddof=1)))
    np.testing.assert_allclose([state.mean, state.std], [mean, std], rtol=1e-5)


def test_the_beta_of_a_batch_is_positive():
    state = no_gaps().replace(lead=jnp.float32(-5.0))
    np.testing.assert_allclose(beta_dpo_call([0.0], state)[1]["beta"], 1e-3)


@pytest.mark.parametrize(
    ("rho", "kept"), [(0.0, 10), (0.2, 8), (0.35, 6), (np.float32(0.6), 4), (0.99, 1)]
)
def test_beta_dpo_keeps_its_share_of_a_batch(rho, kept):
    gaps = np.random.default_rng(0).normal(size=10)
    loss, metrics, state = beta_dpo_call(gaps, beta_dpo_call(gaps, no_gaps(), rho=rho)[2], rho=rho)
    assert metrics["kept"].sum() == kept
    np.testing.assert_allclose(state.share, kept / 10, rtol=1e-6)
    beta = metrics["beta"] * gaps
    average = np.log1p(np.exp(-beta))[metrics["kept"] > 0].mean()
    np.testing.assert_allclose(loss.terms[0].total.mean(), average, rtol=1e-5)


def test_beta_dpo_keeps_every_pair_before_the_first_update():
    loss, metrics, _ = beta_dpo_call([-3.0, 0.5, 9.0], no_gaps())
    np.testing.assert_array_equal(metrics["kept"], 1.0)
    expected = np.log1p(np.exp(-0.1 * np.array([-3.0, 0.5, 9.0])))
    np.testing.assert_allclose(loss.terms[0].total, expected, rtol=1e-6)


def test_beta_dpo_draws_in_proportion_to_the_weights():
    gaps = jnp.array([0.0, 1.0, 2.0, 3.0])
    start = no_gaps().replace(mean=jnp.float32(1.0), std=jnp.float32(1.2))

    def first(seed):
        keys = jax.random.split(jax.random.key(seed), 4)
        noise = jax.vmap(jax.random.gumbel)(keys)
        state = add_batch(start, gaps, noise, jnp.ones(4), 0.75, 1.0)
        return noise - ((gaps - state.mean) / state.std) ** 2 / 2 >= state.cutoff

    kept = jax.vmap(first)(jnp.arange(20000)).mean(0)
    weights = np.exp(-((np.arange(4) - 1.0) ** 2) / 2 / 1.2**2)
    # 20000 draws: a standard error of 0.0035.
    np.testing.assert_allclose(kept, weights / weights.sum(), atol=0.014)


@pytest.mark.parametrize("name", [n for n, o in OBJECTIVES.items() if o.init_state])
def test_nothing_in_the_first_state_is_donated_twice(name):
    model = small_model(one_device())
    tx, params = optax.sgd(1.0), parameters(model)
    tasks = [Task(OBJECTIVES[name], {}, model.forward)]
    abstract = abstract_state(model, tx, tasks)
    state = initial_state(params, tasks, tx, abstract)
    buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state.objective_state)]
    assert len(set(buffers)) == len(buffers)
