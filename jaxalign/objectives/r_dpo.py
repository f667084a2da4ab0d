"""Direct preference optimization regularized by length."""

from __future__ import annotations

from jax.nn import log_sigmoid

from ..core.objective import objective
from ..core.types import Loss, Metrics, Pairs, per_example
from ._common import NonNegative, Positive, log_ratio, pair_metrics


@objective(Pairs, source="Park et al. 2024, arXiv:2403.19159, Eq. 9")
def r_dpo(
    policy: Pairs, ref: Pairs, *, beta: Positive = 0.1, alpha: NonNegative = 0.01
) -> tuple[Loss, Metrics]:
    """R-DPO: DPO where a longer chosen response needs a smaller margin.

        h    = log pi(y_w|x)/pi_ref(y_w|x) - log pi(y_l|x)/pi_ref(y_l|x)
        loss = -log sigmoid(beta h + alpha (|y_w| - |y_l|))

    averaged over pairs. When the policy is the reference the loss is log 2 for pairs of equal
    length.

    Args:
      policy: both responses under the policy. Reads `logp`, `length`, [B].
      ref: both responses under the frozen reference. Reads `logp`, [B].
      beta: reward per nat of log-ratio; larger keeps the policy nearer the reference.
      alpha: reward per token of difference in length.

    Returns:
      The loss, and [B] metrics `rewards/*` (without the length) and `logps/*`.

    Source:
      Paper: Park et al. 2024, arXiv:2403.19159, Eq. 9, known from its ports in sail-sg/oat@c1a074c
      and SamPO. UNVERIFIED: alpha.
      Differences: none. oat uses log-probabilities per token.
    """
    chosen = beta * log_ratio(policy.chosen, ref.chosen)
    rejected = beta * log_ratio(policy.rejected, ref.rejected)
    longer = policy.chosen.length - policy.rejected.length
    loss = -log_sigmoid(chosen - rejected + alpha * longer)
    return per_example(loss), pair_metrics(policy, chosen, rejected)
