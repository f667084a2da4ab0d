"""Discovered preference optimization."""

from __future__ import annotations

from typing import Annotated

import annotated_types
import jax.numpy as jnp
from jax.nn import log_sigmoid, softplus

from ..core.objective import objective
from ..core.types import Loss, Metrics, Pairs, per_example
from ._common import Positive, log_ratio, pair_metrics

Temperature = Annotated[float, annotated_types.Interval(gt=0, le=1)]


@objective(Pairs, source="Lu et al. 2024, arXiv:2406.08414, Eq. 5")
def discopop(
    policy: Pairs, ref: Pairs, *, beta: Positive = 0.05, tau: Temperature = 0.05
) -> tuple[Loss, Metrics]:
    """DiscoPOP: a logistic and an exponential loss, blended by the margin; found by a search.

        z    = beta (log pi(y_w|x)/pi_ref(y_w|x) - log pi(y_l|x)/pi_ref(y_l|x))
        m    = sigmoid(z / tau)
        loss = (1 - m) log(1 + e^-z) + m e^-z

    averaged over pairs. The loss is (1 + log 2)/2 when the policy is the reference. It is not
    convex: with tau 0.05 the gradient lowers the margin for z between -0.1186 and 0.0720, so that
    training moves away from the reference in both directions.

    Args:
      policy: both responses under the policy. Reads `logp`, [B].
      ref: both responses under the frozen reference. Reads `logp`, [B].
      beta: reward per nat of log-ratio; larger keeps the policy nearer the reference.
      tau: width of the blend, in units of reward.

    Returns:
      The loss, and [B] metrics `rewards/*` and `logps/*`.

    Source:
      Paper: Lu et al. 2024, arXiv:2406.08414, Eq. 5, the log-ratio modulated loss.
      Code: TRL's `discopop`, with these defaults once beta is set.
      Differences: none. EasyDeL's default of tau is 1.
    """
    chosen = beta * log_ratio(policy.chosen, ref.chosen)
    rejected = beta * log_ratio(policy.rejected, ref.rejected)
    margin = chosen - rejected
    # m e^-z as one exponential: alone, e^-z overflows where m is 0.
    exponential = jnp.exp(log_sigmoid(margin / tau) - margin)
    loss = jnp.exp(log_sigmoid(-margin / tau)) * softplus(-margin) + exponential
    return per_example(loss), pair_metrics(policy, chosen, rejected)
