"""Direct preference optimization, with label smoothing (cDPO)."""

from __future__ import annotations

from jax.nn import log_sigmoid

from ..core.objective import objective
from ..core.types import Loss, Metrics, Pairs, per_example
from ._common import FlipRate, Positive, log_ratio, pair_metrics


@objective(Pairs, source="Rafailov et al. 2023, arXiv:2305.18290, Eq. 7")
def dpo(
    policy: Pairs, ref: Pairs, *, beta: Positive = 0.1, label_smoothing: FlipRate = 0.0
) -> tuple[Loss, Metrics]:
    """DPO: logistic regression on the difference of two log-ratios.

        h    = log pi(y_w|x)/pi_ref(y_w|x) - log pi(y_l|x)/pi_ref(y_l|x)
        loss = -(1 - eps) log sigmoid(beta h) - eps log sigmoid(-beta h)

    averaged over pairs. The loss is log 2 when the policy is the reference.

    Args:
      policy: both responses under the policy. Reads `logp`, [B].
      ref: both responses under the frozen reference. Reads `logp`, [B].
      beta: reward per nat of log-ratio; larger keeps the policy nearer the reference.
      label_smoothing: eps, the probability that the label of a pair is wrong.

    Returns:
      The loss, and [B] metrics `rewards/*` and `logps/*`.

    Source:
      Paper: Rafailov et al. 2023, arXiv:2305.18290, Eq. 7; eps: Mitchell 2023, cDPO, Eq. 3.
      Differences: none from the paper. TRL 0.29 and later ignore `label_smoothing` here.
    """
    chosen = beta * log_ratio(policy.chosen, ref.chosen)
    rejected = beta * log_ratio(policy.rejected, ref.rejected)
    margin = chosen - rejected
    loss = -(1 - label_smoothing) * log_sigmoid(margin) - label_smoothing * log_sigmoid(-margin)
    return per_example(loss), pair_metrics(policy, chosen, rejected)
