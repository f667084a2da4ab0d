"""Scalar functions against float64 and high-precision closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.core.numerics import bernoulli_kl, expm1, kl_term, log1mexp, weighted_mean

grad_log1mexp = jax.grad(log1mexp)
NODES, WEIGHTS = np.polynomial.legendre.leggauss(400)
LOGITS = st.floats(-60, 60, width=32)


@pytest.mark.parametrize("x", [-80.0, -20.0, -1.0, -1e-8, 0.0, 1.0, 20.0])
def test_the_gradient_of_expm1_keeps_its_digits(x):
    np.testing.assert_allclose(jax.grad(expm1)(x), np.exp(x), rtol=1e-6)


@pytest.mark.parametrize("x", [-1e-30, -1e-8, -1e-3, -0.5, -0.7, -1.0, -10.0, -80.0])
def test_log1mexp_equals_float64(x):
    x = np.float32(x)
    exact = np.log(-np.expm1(float(x))) if x > -0.7 else np.log1p(-np.exp(float(x)))
    np.testing.assert_allclose(log1mexp(x), exact, rtol=3e-7)


@pytest.mark.parametrize("x", [-1e-30, -1e-8, -1e-3, -0.5, -0.7, -1.0, -10.0, -80.0])
def test_log1mexp_gradient_equals_float64(x):
    x = np.float32(x)
    np.testing.assert_allclose(grad_log1mexp(x), -1 / np.expm1(-float(x)), rtol=1e-6)


@pytest.mark.parametrize("x", [0.0, 1.0, -1e4])
def test_log1mexp_gradient_is_zero_where_nothing_is_left_to_move(x):
    np.testing.assert_array_equal(grad_log1mexp(x), 0.0)


def test_log1mexp_is_finite_at_zero():
    np.testing.assert_allclose(log1mexp(jnp.float32(0.0)), np.log(1e-37), rtol=1e-6)


def test_weighted_mean_ignores_what_has_no_weight():
    np.testing.assert_array_equal(
        weighted_mean(jnp.array([2.0, jnp.nan, 4.0]), jnp.array([3.0, 0.0, 1.0])), 2.5
    )


def test_weighted_mean_of_nothing_is_zero():
    np.testing.assert_array_equal(weighted_mean(jnp.ones(3), jnp.zeros(3)), 0.0)


def kl64(target, excess):
    """By the integral of sigmoid(target + u) - sigmoid(target), float64, 400 nodes."""
    u, w = (NODES + 1) / 2 * excess, WEIGHTS / 2 * excess
    q = 1 / (1 + np.exp(-target))
    return (w * q * (1 - q) * np.expm1(u) / (1 + q * np.expm1(u))).sum()


def slope64(target, excess):
    """sigmoid(target + excess) - sigmoid(target), without cancellation."""
    q = 1 / (1 + np.exp(-target))
    return q * (1 - q) * np.expm1(excess) / (1 + q * np.expm1(excess))


@jax.jit
@jax.value_and_grad
def kl_of_excess(excess, target):
    return bernoulli_kl(target + excess, target, excess)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(target=st.floats(-20, 20, width=32), power=st.floats(-4, 1.2), up=st.booleans())
def test_bernoulli_kl_has_six_digits_at_any_distance(target, power, up):
    excess = float(np.float32((1 if up else -1) * 10**power))
    value, slope = kl_of_excess(jnp.float32(excess), jnp.float32(target))
    # target + excess is itself rounded, to 2e-6, which 1e-5 allows for
    np.testing.assert_allclose(value, kl64(target, excess), rtol=1e-5)
    np.testing.assert_allclose(slope, slope64(target, excess), rtol=1e-5)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(target=LOGITS, logit=LOGITS)
def test_bernoulli_kl_is_finite_and_not_negative(target, logit):
    t, s = jnp.float32(target), jnp.float32(logit)
    assert 0 <= bernoulli_kl(s, t, s - t) < np.inf


@pytest.mark.parametrize("logit", [-30.0, 0.5, 300.0])
def test_bernoulli_kl_to_probability_zero_is_softplus(logit):
    s, t = jnp.float32(logit), jnp.float32(-jnp.inf)
    value, slope = jax.value_and_grad(lambda s: bernoulli_kl(s, t, s - t))(s)
    np.testing.assert_allclose(value, np.logaddexp(0, logit), rtol=1e-6)
    np.testing.assert_allclose(slope, 1 / (1 + np.exp(-logit)), rtol=1e-6)


@pytest.mark.parametrize("excess", [-3.0, -0.9, -1e-3, 0.0, 1e-4, 0.7, 2.0])
def test_kl_term_equals_float64(excess):
    excess = float(np.float32(excess))
    target = np.float32(-4.0)
    ours = kl_term(target + np.float32(excess), target, jnp.float32(excess))
    # e^x - 1 - x by its series: the direct difference has no digits in float64 either at 1e-4
    series = sum(excess**n / np.prod(np.arange(1.0, n + 1)) for n in range(2, 30))
    np.testing.assert_allclose(ours, np.exp(-4.0) * series, rtol=2e-6)


def test_kl_terms_sum_to_the_kl():
    p, q = np.array([0.2, 0.5, 0.3]), np.array([0.6, 0.1, 0.3])
    terms = kl_term(*(jnp.asarray(x, jnp.float32) for x in (np.log(p), np.log(q), np.log(p / q))))
    np.testing.assert_allclose(terms.sum(), (q * np.log(q / p)).sum(), rtol=1e-6)


def test_kl_term_to_probability_zero_is_the_probability():
    value, slope = jax.value_and_grad(lambda x: kl_term(x, -jnp.inf, x + jnp.inf))(-1.5)
    np.testing.assert_allclose([value, slope], np.exp(-1.5), rtol=1e-6)
