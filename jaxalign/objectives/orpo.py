"""Odds ratio preference optimization."""

from __future__ import annotations

from jax.nn import log_sigmoid

from ..core.numerics import log1mexp
from ..core.objective import objective
from ..core.types import Array, Loss, Metrics, Pairs, SequenceStats, per_example
from ._common import NonNegative, nll, pair_metrics


def log_odds(response: SequenceStats) -> Array:
    """log(p / (1 - p)) of the geometric mean p of the token probabilities, [B]."""
    return response.avg_logp - log1mexp(response.avg_logp)


@objective(Pairs, source="Hong et al. 2024, arXiv:2403.07691, Eq. 6")
def orpo(policy: Pairs, *, lam: NonNegative = 0.1) -> tuple[Loss, Metrics]:
    """ORPO: fine-tuning on chosen responses, plus the odds of chosen over rejected; no reference.

        p(y) = exp(log pi(y|x) / |y|),   odds(y) = p(y) / (1 - p(y))
        loss = - log pi(y_w|x)                                  averaged over tokens
               - lam log sigmoid(log(odds(y_w) / odds(y_l)))    averaged over pairs

    Args:
      policy: both responses under the policy. Reads `logp`, `length`, [B].
      lam: weight of the odds ratio.

    Returns:
      The loss, and [B] metrics `rewards/*` (log-probabilities, nats per token) and `logps/*`.

    Source:
      Paper: Hong et al. 2024, arXiv:2403.07691, Eq. 6 and 7.
      Code: xfactlab/orpo; its models were trained with lam 0.05 and 0.1, its default is 1.
      Differences: the first term covers only the response. The authors' code includes the prompt by
      default, TRL (where lam is `beta`) always, tunix by default.
    """
    chosen, rejected = policy.chosen.avg_logp, policy.rejected.avg_logp
    preference = -log_sigmoid(log_odds(policy.chosen) - log_odds(policy.rejected))
    loss = nll(policy.chosen, "token_mean") + lam * per_example(preference)
    return loss, pair_metrics(policy, chosen, rejected)
