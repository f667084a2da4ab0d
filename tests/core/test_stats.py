"""Token statistics against dense float64, and the masked sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.core import stats

BOTH = pytest.mark.parametrize("stat", [stats.logp, stats.log_complement], ids=lambda s: s.name)


def exact(name, logits, target):
    z = np.asarray(logits, np.float64)
    z = z - z.max(-1, keepdims=True)
    others = np.where(np.arange(z.shape[-1]) == target[:, None], -np.inf, z)
    total = np.logaddexp.reduce(z, -1)
    if name == "log_complement":
        return np.logaddexp.reduce(others, -1) - total
    # log p = -log(1 + sum of the others / p), exact where p is near 1
    odds = np.exp(np.logaddexp.reduce(others, -1) - z[np.arange(len(target)), target])
    return -np.log1p(odds)


def case(sharpness):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 11)) * 3
    target = rng.integers(0, 11, 6)
    logits[np.arange(6), target] += sharpness
    return jnp.asarray(logits, jnp.float32), target


@BOTH
@pytest.mark.parametrize("sharpness", [-90.0, 0.0, 18.0, 60.0])
def test_value_equals_float64(stat, sharpness):
    logits, target = case(sharpness)
    # 1e-5: the log-odds are a difference of float32 logits of up to 90
    np.testing.assert_allclose(
        stat(logits, jnp.asarray(target)), exact(stat.name, logits, target), rtol=1e-5
    )


@BOTH
@pytest.mark.parametrize("sharpness", [-30.0, 0.0, 18.0])
def test_gradient_equals_float64(stat, sharpness):
    logits, target = case(sharpness)
    grad = jax.grad(lambda z: stat(z, jnp.asarray(target)).sum())(logits)
    z = np.asarray(logits, np.float64)
    p = np.exp(z - np.logaddexp.reduce(z, -1, keepdims=True))
    hit = np.eye(11)[target]
    away = (p * (1 - hit)).sum(-1, keepdims=True)
    expected = hit * away - p * (1 - hit)
    if stat.name == "log_complement":
        expected = -expected * (p * hit).sum(-1, keepdims=True) / away
    np.testing.assert_allclose(grad, expected, rtol=2e-5, atol=1e-30)


def test_complement_keeps_its_digits_where_logp_rounds_to_zero():
    logits = jnp.array([[200.0, 0.0, 0.0]])
    np.testing.assert_allclose(
        stats.log_complement(logits, jnp.array([0])), np.log(2.0) - 200.0, rtol=1e-6
    )


@pytest.mark.parametrize("size", [1, 2, 7, 96, 256, 512, 777])
@pytest.mark.parametrize("fn", [stats._most_of_others, stats._most_of_others_by_parts])
def test_the_greatest_of_the_other_logits(fn, size):
    rng = np.random.default_rng(size)
    logits = rng.normal(size=(2, 5, size)).astype(np.float32)
    logits[0, 0, : size // 2] = -np.inf
    target = rng.integers(0, size, (2, 5))
    target[1] = logits[1].argmax(-1)
    others = np.where(np.arange(size) == target[..., None], -np.inf, logits)
    np.testing.assert_array_equal(fn(jnp.asarray(logits), jnp.asarray(target)), others.max(-1))


def test_earth_mover_is_the_expected_distance_between_embeddings():
    rng = np.random.default_rng(0)
    logits, head = rng.normal(size=(3, 11)), rng.normal(size=(4, 11))
    target = np.array([0, 4, 10])
    p = np.exp(logits - np.logaddexp.reduce(logits, -1, keepdims=True))
    unit = head / np.linalg.norm(head, axis=0)
    distance = 1 - unit.T @ unit
    expected = (p * distance[target]).sum(-1)
    slope = p * (distance[target] - expected[:, None])

    def fn(z, head):
        return stats.earth_mover(z, jnp.asarray(target), head=head)

    z, head = jnp.asarray(logits, jnp.float32), jnp.asarray(head, jnp.float32)
    np.testing.assert_allclose(fn(z, head), expected, rtol=1e-5)
    grads = jax.grad(lambda *x: fn(*x).sum(), argnums=(0, 1))(z, head)
    np.testing.assert_allclose(grads[0], slope, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(grads[1], 0.0)


def test_earth_mover_keeps_its_digits_where_the_target_is_sure():
    logits = jnp.array([[30.0, 0.0]])
    out = stats.earth_mover(logits, jnp.array([0]), head=jnp.eye(2))
    np.testing.assert_allclose(out, np.exp(-30.0), rtol=1e-5)


def test_reduce_tokens_sums_over_the_mask():
    token = {"logp": jnp.array([[-1.0, -2.0, -4.0]])}
    y = stats.reduce_tokens(token, jnp.array([[True, False, True]]))
    np.testing.assert_array_equal([y.logp[0], y.length[0]], [-5.0, 2.0])


def test_reduce_tokens_zeroes_what_is_masked():
    token = {"logp": jnp.array([[-1.0, jnp.nan]]), "log_complement": jnp.array([[-1.0, -jnp.inf]])}
    y = stats.reduce_tokens(token, jnp.array([[True, False]]))
    np.testing.assert_array_equal(y.token["log_complement"], [[-1.0, 0.0]])
    np.testing.assert_array_equal(y.logp, [-1.0])


def test_an_empty_response_has_average_zero():
    y = stats.reduce_tokens({"logp": jnp.zeros((1, 2))}, jnp.zeros((1, 2), bool))
    np.testing.assert_array_equal(y.avg_logp, [0.0])
