"""Scalar functions that stay accurate where the obvious formula does not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import sigmoid, softplus

from .types import Array

LOG_HALF = -0.6931471805599453
_NODES, _WEIGHTS = (a.tolist() for a in np.polynomial.legendre.leggauss(6))


@jax.custom_jvp
def expm1(x: Array) -> Array:
    """The exponential minus 1, with the derivative e^x; jax has `expm1` + 1, 0 at x = -20."""
    return jnp.expm1(x)


@expm1.defjvp
def _expm1_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return expm1(x), jnp.exp(x) * dx


@jax.custom_jvp
def log1mexp(x: Array) -> Array:
    """log(1 - e^x) for x <= 0, accurate at both ends; x > -1e-37 counts as -1e-37.

    `log(-expm1(x))` near 0 and `log1p(-exp(x))` elsewhere: either alone is wrong at the other end.
    """
    x = jnp.minimum(x, -1e-37)
    near = x > LOG_HALF
    return jnp.where(
        near,
        jnp.log(-jnp.expm1(jnp.where(near, x, LOG_HALF))),
        jnp.log1p(-jnp.exp(jnp.where(near, LOG_HALF, x))),
    )


@log1mexp.defjvp
def _log1mexp_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # The derivative -1/expm1(-x) in closed form: automatic differentiation of the two branches
    # gives 0 * inf at x = 0. expm1(-x) overflows to inf for x < -88, where the answer is 0.
    (x,), (dx,) = primals, tangents
    slope = -1.0 / jnp.expm1(-jnp.minimum(x, -1e-37))
    return log1mexp(x), jnp.where(x < -1e-37, slope, 0.0) * dx


def weighted_mean(values: Array, weights: Array) -> Array:
    """Mean over the last axis, [..., B] -> [...]; 0 where all weights are 0.

    Entries with weight 0 are ignored, even NaN or inf.
    """
    total = weights.sum(-1)
    weighted = weights * jnp.where(weights > 0, values, 0.0)
    return weighted.sum(-1) / jnp.where(total > 0, total, 1.0)


def bernoulli_kl(logit: Array, target: Array, excess: Array) -> Array:
    """KL(Bern(sigmoid(target)) || Bern(sigmoid(logit))), elementwise, nats.

    Accurate in relative terms, value and gradient, however close the two are: the textbook form
    subtracts numbers of order 1 to get one of order excess^2.

    Args:
      logit: log-odds of the second distribution.
      target: log-odds of the target distribution; if a constant, -inf (probability 0) is allowed.
      excess: logit - target, which a caller may know to more digits than its terms.
    """
    # The KL is the same after exchanging the two outcomes; then sigmoid(target) <= 1/2.
    sign = jnp.where(target > 0, -1.0, 1.0).astype(logit.dtype)
    q = sigmoid(sign * target)
    near, small = _near_zero(sign * excess)
    far = softplus(sign * logit) - softplus(sign * target)
    far = far - q * jnp.where(q > 0, sign * excess, 0.0)
    return jnp.where(near, q * (1.0 - q) * small * _slope(small, q), far)


def kl_term(logp: Array, target: Array, excess: Array) -> Array:
    """e^logp - e^target - e^target * excess, one outcome's share of a KL, >= 0, nats.

    Summed over all outcomes of two distributions this is KL(e^target || e^logp), since both sum
    to 1; unlike -e^target * excess alone, nothing cancels in the sum.

    Args:
      logp: log-probability of the outcome under the distribution that is moved.
      target: the same under the distribution aimed at, a constant; -inf is allowed.
      excess: logp - target, which a caller may know to more digits than its terms.
    """
    q = jnp.exp(target)
    near, small = _near_zero(excess)
    far = jnp.exp(logp) - q - q * jnp.where(q > 0, excess, 0.0)
    return jnp.where(near, q * small * _slope(small, jnp.zeros_like(q)), far)


def _near_zero(x: Array) -> tuple[Array, Array]:
    near = jnp.abs(x) < 1.0
    return near, jnp.where(near, x, 0.0)


def _slope(x: Array, q: Array) -> Array:
    """The integral over u in [0, 1] of expm1(xu) / (1 + q expm1(xu)), for |x| <= 1, q <= 1/2.

    Gauss-Legendre: the integrand has one sign, so there is no cancellation, and its nearest pole
    is pi away, so six nodes are exact to 1e-12.
    """
    grown = [expm1((node + 1.0) / 2.0 * x) for node in _NODES]
    return sum((w / 2.0 * g / (1.0 + q * g) for w, g in zip(_WEIGHTS, grown, strict=True)), 0.0 * x)
