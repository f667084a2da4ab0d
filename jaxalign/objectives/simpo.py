"""Simple preference optimization."""

from __future__ import annotations

from jax.nn import log_sigmoid

from ..core.objective import objective
from ..core.types import Loss, Metrics, Pairs, per_example
from ._common import NonNegative, Positive, pair_metrics


@objective(Pairs, source="Meng et al. 2024, arXiv:2405.14734")
def simpo(
    policy: Pairs, *, beta: Positive = 2.0, gamma_beta_ratio: NonNegative = 0.5
) -> tuple[Loss, Metrics]:
    """SimPO: length-normalized log-probabilities as rewards, with a target margin; no reference.

        a(y) = log pi(y|x) / |y|
        loss = -log sigmoid(beta (a(y_w) - a(y_l)) - gamma),   gamma = beta * gamma_beta_ratio

    averaged over pairs.

    Args:
      policy: both responses under the policy. Reads `avg_logp`, [B].
      beta: reward per nat-per-token.
      gamma_beta_ratio: target margin, nats per token.

    Returns:
      The loss, and [B] metrics `rewards/*` and `logps/*`.

    Source:
      Paper: Meng et al. 2024, arXiv:2405.14734.
      Code: princeton-nlp/SimPO@1b3e8f3; its trainer defaults to gamma_beta_ratio 0.25, its README
      says to start at 0.5.
      Differences: none. TRL takes `simpo_gamma`, has beta 0.1, and adds an SFT term by default.
    """
    chosen = beta * policy.chosen.avg_logp
    rejected = beta * policy.rejected.avg_logp
    gamma = beta * gamma_beta_ratio
    loss = -log_sigmoid(chosen - rejected - gamma)
    return per_example(loss), pair_metrics(policy, chosen, rejected)
