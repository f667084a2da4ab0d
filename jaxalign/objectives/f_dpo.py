"""Direct preference optimization with divergences other than the reverse KL."""

from __future__ import annotations

from typing import Annotated, Literal

import annotated_types
import jax.numpy as jnp
from jax.nn import log_sigmoid, relu

from ..core.numerics import LOG_HALF, expm1
from ..core.objective import objective
from ..core.types import Array, Loss, Metrics, Pairs, per_example
from ._common import Positive, log_ratio, pair_metrics

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]
Between = Annotated[float, annotated_types.Interval(gt=0, lt=1)]
LIMIT = 70.0  # nats; e^70 times the 1e5 nats of a long response still fits in float32


@objective(Pairs, source="Wang et al. 2023, arXiv:2309.16240")
def f_dpo(
    policy: Pairs,
    ref: Pairs,
    *,
    beta: Positive = 0.1,
    divergence: Divergence = "alpha",
    alpha: Between = 0.5,
) -> tuple[Loss, Metrics]:
    """f-DPO: DPO whose reward is the slope f' of the divergence to the reference.

        u(y) = pi(y|x)/pi_ref(y|x)
        loss = -log sigmoid(beta f'(u(y_w)) - beta f'(u(y_l)))
        f'(u) = log u (reverse_kl), 1 - 1/u (forward_kl), log(2u / (1 + u)) (js),
                (1 - u^-alpha) / alpha (alpha)

    averaged over pairs. The loss is log 2 when the policy is the reference. For a response that
    lost n nats, 1/u is e^n and u^-alpha is e^(alpha n); beyond e^70 both continue as straight
    lines, so that loss and gradient stay finite in float32.

    Args:
      policy: both responses under the policy. Reads `logp`, [B].
      ref: both responses under the frozen reference. Reads `logp`, [B].
      beta: reward per unit of f'; larger keeps the policy nearer the reference.
      divergence: the divergence f; `reverse_kl` is `dpo`.
      alpha: parameter of the divergence `alpha`, as in the paper: reverse KL towards 0, forward KL
        towards 1.

    Returns:
      The loss, and [B] metrics `rewards/*` (beta f') and `logps/*`.

    Source:
      Paper: Wang et al. 2023, arXiv:2309.16240.
      Code: alecwangcq/f-divergence-dpo@07d9369.
      Differences: constants are added to f'; they cancel. TRL's f_alpha_divergence_coef is 1 -
      alpha from 0.29 on, alpha before. TRL stops the gradient where u^-alpha exceeds e^80, and its
      forward KL overflows.
    """
    chosen = beta * _slope(log_ratio(policy.chosen, ref.chosen), divergence, alpha)
    rejected = beta * _slope(log_ratio(policy.rejected, ref.rejected), divergence, alpha)
    return per_example(-log_sigmoid(chosen - rejected)), pair_metrics(policy, chosen, rejected)


def _slope(log_u: Array, divergence: Divergence, alpha: float | Array) -> Array:
    """f'(u), 0 at u = 1."""
    if divergence == "reverse_kl":
        return log_u
    if divergence == "forward_kl":
        return -_expm1(-log_u)
    if divergence == "js":
        return log_sigmoid(log_u) - LOG_HALF
    return -_expm1(-alpha * log_u) / alpha


def _expm1(x: Array) -> Array:
    """e^x - 1; beyond `LIMIT`, its tangent there."""
    return expm1(jnp.minimum(x, LIMIT)) + jnp.exp(LIMIT) * relu(x - LIMIT)
