"""Aligned supervised fine-tuning."""

from __future__ import annotations

from jax.nn import log_sigmoid

from ..core.numerics import log1mexp
from ..core.objective import objective
from ..core.types import Array, Loss, Metrics, Pairs, SequenceStats, per_example
from ._common import NonNegative, Positive, pair_metrics


@objective(Pairs, source="Wang et al. 2024, arXiv:2409.10571")
def asft(policy: Pairs, *, lam: NonNegative = 1.0, beta: Positive = 1.0) -> tuple[Loss, Metrics]:
    """ASFT: likelihood of chosen, plus a classifier of each single response by its odds.

        a(y) = log pi(y|x) / |y|,   o(y) = a(y) - log(1 - e^a(y))
        loss = -a(y_w) - lam (log sigmoid(beta o(y_w)) + log sigmoid(-beta o(y_l)))

    averaged over pairs; there is no reference. With beta = 1 the odds cancel, and the loss is -(1 +
    lam) a(y_w) - lam log(1 - e^a(y_l)): likelihood and unlikelihood.

    Args:
      policy: both responses under the policy. Reads `avg_logp`, [B].
      lam: weight of the classifier relative to the likelihood of the chosen response.
      beta: reward per unit of log-odds.

    Returns:
      The loss, and [B] metrics `rewards/*` (beta times log-odds) and `logps/*`.

    Source:
      Paper: Wang et al. 2024, arXiv:2409.10571; beta: arXiv:2502.01237. UNVERIFIED: whether the
      first divides by |y|, and its lam; the second divides, and finds lam = 1 best.
      Differences: the ASFT of LLaMA-Factory, anchored SFT, is another method.
    """
    chosen, rejected = beta * _log_odds(policy.chosen), beta * _log_odds(policy.rejected)
    classifier = log_sigmoid(chosen) + log_sigmoid(-rejected)
    loss = -policy.chosen.avg_logp - lam * classifier
    return per_example(loss), pair_metrics(policy, chosen, rejected)


def _log_odds(y: SequenceStats) -> Array:
    """The log-odds of the geometric mean of the token probabilities, [B]."""
    return y.avg_logp - log1mexp(y.avg_logp)
