"""Direct preference optimization that penalizes a less likely chosen response."""

from __future__ import annotations

from jax.nn import log_sigmoid, relu

from ..core.objective import objective
from ..core.types import Loss, Metrics, Pairs, per_example
from ._common import NonNegative, Positive, log_ratio, pair_metrics


@objective(Pairs, source="Pal et al. 2024, arXiv:2402.13228, Eq. 3")
def dpop(
    policy: Pairs, ref: Pairs, *, beta: Positive = 0.3, lam: NonNegative = 50.0
) -> tuple[Loss, Metrics]:
    """DPO-positive (DPOP, Smaug): DPO with a penalty on chosen responses below the reference.

        d(y) = log pi(y|x)/pi_ref(y|x)
        loss = -log sigmoid(beta (d(y_w) - d(y_l) - lam max(0, -d(y_w))))

    averaged over pairs. The loss is log 2 when the policy is the reference.

    Args:
      policy: both responses under the policy. Reads `logp`, [B].
      ref: both responses under the frozen reference. Reads `logp`, [B].
      beta: reward per nat of log-ratio; larger keeps the policy nearer the reference.
      lam: nats subtracted from the margin per nat that the chosen response is below the reference.

    Returns:
      The loss, and [B] metrics `rewards/*` (without the penalty) and `logps/*`.

    Source:
      Paper: Pal et al. 2024, arXiv:2402.13228, Eq. 3; lam 50 from secondary sources. UNVERIFIED:
      beta 0.3.
      Differences: none. Some ports put the penalty outside the sigmoid, or with the other sign.
    """
    chosen = beta * log_ratio(policy.chosen, ref.chosen)
    rejected = beta * log_ratio(policy.rejected, ref.rejected)
    loss = -log_sigmoid(chosen - rejected - lam * relu(-chosen))
    return per_example(loss), pair_metrics(policy, chosen, rejected)
