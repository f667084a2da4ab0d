"""Noise contrastive alignment, on pairs."""

from __future__ import annotations

from jax.nn import log_sigmoid

from ..core.objective import objective
from ..core.types import Loss, Metrics, Pairs, per_example
from ._common import Positive, log_ratio, pair_metrics


@objective(Pairs, source="Chen et al. 2024, arXiv:2402.05369")
def nca_pair(policy: Pairs, ref: Pairs, *, beta: Positive = 0.01) -> tuple[Loss, Metrics]:
    """NCA on pairs: classifies each response as preferred or as drawn from the reference.

        r(y) = beta log pi(y|x)/pi_ref(y|x)
        loss = -log sigmoid(r(y_w)) - 1/2 log sigmoid(-r(y_w)) - 1/2 log sigmoid(-r(y_l))

    averaged over pairs. The loss is 2 log 2 when the policy is the reference. r(y_w) is pulled to
    log 2, so the likelihood of chosen responses does not fall as it may with DPO.

    Args:
      policy: both responses under the policy. Reads `logp`, [B].
      ref: both responses under the frozen reference. Reads `logp`, [B].
      beta: reward per nat of log-ratio; larger keeps the policy nearer the reference.

    Returns:
      The loss, and [B] metrics `rewards/*` and `logps/*`.

    Source:
      Paper: Chen et al. 2024, arXiv:2402.05369, its NCA for two responses and the target (1, 0).
      Code: thu-ml/Noise-Contrastive-Alignment; TRL's `nca_pair`.
      Differences: none.
    """
    chosen = beta * log_ratio(policy.chosen, ref.chosen)
    rejected = beta * log_ratio(policy.rejected, ref.rejected)
    noise = 0.5 * (log_sigmoid(-chosen) + log_sigmoid(-rejected))
    return per_example(-log_sigmoid(chosen) - noise), pair_metrics(policy, chosen, rejected)
