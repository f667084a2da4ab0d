"""Weighted preference optimization."""

from __future__ import annotations

import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.nn import log_sigmoid

from ..core import stats
from ..core.objective import objective
from ..core.types import Array, Loss, Metrics, Pairs, SequenceStats, per_example
from ._common import Positive, log_ratio, pair_metrics


@objective(
    Pairs,
    source="Zhou et al. 2024, arXiv:2406.11827, Eq. 2",
    needs=(stats.logp, stats.log_collision),
)
def wpo(
    policy: Pairs, ref: Pairs, *, beta: Positive = 0.1, clamp: bool = True
) -> tuple[Loss, Metrics]:
    """WPO: DPO with pairs weighted by their likelihood under the policy.

        log w(y) = (1/|y|) sum_t [ log pi(y_t) - log sum_v pi(v)^2 ]
        loss     = -min(1, w(y_w) w(y_l)) log sigmoid(beta h)

    averaged over pairs; h is DPO's difference of log-ratios, the weight is a constant. A token that
    is as likely as the average token drawn from the policy has weight 1.

    Args:
      policy: both responses under the policy. Reads `logp` and `token["log_collision"]`.
      ref: both responses under the frozen reference. Reads `logp`, [B].
      beta: reward per nat of log-ratio; larger keeps the policy nearer the reference.
      clamp: whether the product of the weights is clipped to at most 1.

    Returns:
      The loss, and [B] metrics `rewards/*`, `logps/*` and `weight`.

    Source:
      Paper: Zhou et al. 2024, arXiv:2406.11827, Eq. 2; the authors' beta is 0.01.
      Code: wzhouad/WPO, which clips; TRL clips up to 0.27 and not from 0.29.
      Differences: the clip comes from the code.
    """
    chosen = beta * log_ratio(policy.chosen, ref.chosen)
    rejected = beta * log_ratio(policy.rejected, ref.rejected)
    log_weight = _log_weight(policy.chosen) + _log_weight(policy.rejected)
    weight = stop_gradient(jnp.exp(jnp.minimum(log_weight, 0.0) if clamp else log_weight))
    metrics = pair_metrics(policy, chosen, rejected) | {"weight": weight}
    return per_example(-weight * log_sigmoid(chosen - rejected)), metrics


def _log_weight(y: SequenceStats) -> Array:
    """The log-likelihood of a response relative to samples of the policy, nats per token."""
    return y.avg_logp - y.token["log_collision"].sum(-1) / jnp.maximum(y.length, 1.0)
