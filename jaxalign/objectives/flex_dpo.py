"""Direct preference optimization with a separate beta for each response."""

from __future__ import annotations

from jax.nn import log_sigmoid

from ..core.objective import objective
from ..core.types import Loss, Metrics, Pairs, per_example
from ._common import Positive, log_ratio, pair_metrics


@objective(Pairs, source="Yan et al. 2024, arXiv:2406.07327")
def flex_dpo(
    policy: Pairs, ref: Pairs, *, beta_chosen: Positive = 0.1, beta_rejected: Positive = 0.08
) -> tuple[Loss, Metrics]:
    """Flex-DPO: DPO that pushes the rejected response down less than the chosen one up.

        d(y) = log pi(y|x)/pi_ref(y|x)
        loss = -log sigmoid(beta_w d(y_w) - beta_l d(y_l))

    averaged over pairs. The loss is log 2 when the policy is the reference.

    Args:
      policy: both responses under the policy. Reads `logp`, [B].
      ref: both responses under the frozen reference. Reads `logp`, [B].
      beta_chosen: beta_w, reward per nat of log-ratio of the chosen response.
      beta_rejected: beta_l, reward per nat of log-ratio of the rejected response; meant to be below
        `beta_chosen`.

    Returns:
      The loss, and [B] metrics `rewards/*` and `logps/*`.

    Source:
      Paper: Yan et al. 2024, arXiv:2406.07327, known from secondary sources.
      Differences: the paper's optional likelihood term is left out.
    """
    chosen = beta_chosen * log_ratio(policy.chosen, ref.chosen)
    rejected = beta_rejected * log_ratio(policy.rejected, ref.rejected)
    return per_example(-log_sigmoid(chosen - rejected)), pair_metrics(policy, chosen, rejected)
