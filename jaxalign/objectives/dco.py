"""Direct coverage optimization: the likelihood of a correct answer among several samples."""

from __future__ import annotations

from typing import Annotated

import annotated_types
import jax
import jax.numpy as jnp

from ..core.numerics import expm1, log1mexp
from ..core.objective import objective
from ..core.types import Array, Demos, Loss, Metrics, per_example

Samples = Annotated[float, annotated_types.Ge(1)]


@objective(Demos, source="Chen et al. 2025, DCO, arXiv:2502.07154")
def dco(policy: Demos, *, samples: Samples = 16.0) -> tuple[Loss, Metrics]:
    """DCO: the negative log-likelihood that one of N samples is the response.

        loss = -log(1 - (1 - pi(y|x))^N)

    averaged over examples. Its gradient is the gradient of -log pi(y|x) times a factor F between 0
    and 1, which is 1 for a rare response and falls once N pi(y|x) nears 1. This limits confidence.
    For long responses, and for N = 1, F is 1 and DCO is maximum likelihood.

    Args:
      policy: the response under the policy. Reads `logp`, [B].
      samples: N, the number of samples drawn when the model is used (pass@N).

    Returns:
      The loss, and [B] metrics `logps/response` and `weights/response` (F).

    Source:
      Paper: Chen et al. 2025, arXiv:2502.07154.
      Code: allanraventos/refine@31a9e6e, with float64 and a series where N pi(y|x) < 0.1.
      Differences: none from the paper; the gradient has a form without cancellation. The code
      multiplies F into a mean over tokens, or into the sum as here; its default N is 1.
    """
    logp = policy.response.logp
    metrics = {"logps/response": logp, "weights/response": _slope(logp, samples)}
    return per_example(-log_coverage(logp, samples)), metrics


@jax.custom_jvp
def log_coverage(logp: Array, samples: float | Array) -> Array:
    """log(1 - (1 - e^logp)^samples), logp <= 0, accurate at both ends; no gradient in `samples`."""
    rare = logp + jnp.log(samples)  # exact to e^-60 in its range
    common = log1mexp(samples * log1mexp(jnp.where(rare < -60.0, 0.0, logp)))
    return jnp.where(rare < -60.0, rare, common)


@log_coverage.defjvp
def _log_coverage_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    (logp, samples), (dlogp, _) = primals, tangents
    return log_coverage(logp, samples), _slope(logp, samples) * dlogp


def _slope(logp: Array, samples: float | Array) -> Array:
    """F = N p (1 - p)^(N - 1) / (1 - (1 - p)^N), p = e^logp; the power from its logarithm."""
    p, log_rest = jnp.exp(logp), log1mexp(logp)
    tiny = p < 1e-30
    missed = -expm1(samples * jnp.where(tiny, -1.0, log_rest))
    return jnp.where(tiny, 1.0, samples * p * jnp.exp((samples - 1.0) * log_rest) / missed)
