"""Direct preference optimization from labels that are flipped at a known rate."""

from __future__ import annotations

from jax.nn import log_sigmoid

from ..core.objective import objective
from ..core.types import Loss, Metrics, Pairs, per_example
from ._common import FlipRate, Positive, log_ratio, pair_metrics


@objective(Pairs, source="Chowdhury et al. 2024, arXiv:2403.00409")
def robust_dpo(
    policy: Pairs, ref: Pairs, *, beta: Positive = 0.1, label_smoothing: FlipRate = 0.1
) -> tuple[Loss, Metrics]:
    """Robust DPO (rDPO): its mean over label flips is the DPO loss of the true labels.

        h    = log pi(y_w|x)/pi_ref(y_w|x) - log pi(y_l|x)/pi_ref(y_l|x)
        loss = (-(1 - eps) log sigmoid(beta h) + eps log sigmoid(-beta h)) / (1 - 2 eps)

    averaged over pairs. The loss is log 2 when the policy is the reference. The loss has no lower
    bound and its gradient never vanishes, so do not stop by its value.

    Args:
      policy: both responses under the policy. Reads `logp`, [B].
      ref: both responses under the frozen reference. Reads `logp`, [B].
      beta: reward per nat of log-ratio; larger keeps the policy nearer the reference.
      label_smoothing: eps, the probability that the label of a pair is wrong.

    Returns:
      The loss, and [B] metrics `rewards/*` and `logps/*`.

    Source:
      Paper: Chowdhury et al. 2024, arXiv:2403.00409.
      Differences: none; it is `robust` in TRL. cDPO, which is `dpo` with `label_smoothing`,
      adds the second term, and is biased.
    """
    chosen = beta * log_ratio(policy.chosen, ref.chosen)
    rejected = beta * log_ratio(policy.rejected, ref.rejected)
    margin = chosen - rejected
    right, wrong = -log_sigmoid(margin), -log_sigmoid(-margin)
    loss = ((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing)
    return per_example(loss), pair_metrics(policy, chosen, rejected)
