"""Direct preference optimization with a likelihood term."""

from __future__ import annotations

from typing import Literal

from jax.nn import log_sigmoid

from ..core.objective import objective
from ..core.types import Loss, Metrics, Pairs, per_example
from ._common import NonNegative, Positive, log_ratio, nll, pair_metrics


@objective(Pairs, source="Liu et al. 2024, arXiv:2405.16436; Pang et al. 2024, arXiv:2404.19733")
def rpo(
    policy: Pairs,
    ref: Pairs,
    *,
    beta: Positive = 0.1,
    alpha: NonNegative = 1.0,
    sft_reduction: Literal["mean", "sum", "token_mean"] = "mean",
) -> tuple[Loss, Metrics]:
    """RPO: DPO plus the likelihood of the chosen response, against overoptimization.

        h    = log pi(y_w|x)/pi_ref(y_w|x) - log pi(y_l|x)/pi_ref(y_l|x)
        loss = -log sigmoid(beta h) - alpha log pi(y_w|x) / |y_w|

    averaged over pairs. The published forms are

        iterative RPO (Pang):    beta 0.1,  mean, alpha 1
        RPO (Liu), average:      beta 0.5,  mean, alpha = eta = 0.2
        RPO (Liu), cumulative:   beta 0.01, sum,  alpha = eta beta = 0.005 * 0.01
        TRL's ["sigmoid", "sft"]:           token_mean, alpha the weight of "sft"

    Args:
      policy: both responses under the policy. Reads `logp`, `length`, [B].
      ref: both responses under the frozen reference. Reads `logp`, [B].
      beta: reward per nat of log-ratio; larger keeps the policy nearer the reference.
      alpha: weight of the likelihood term, per nat as averaged by `sft_reduction`.
      sft_reduction: average of the likelihood term: `mean` as above; `sum`, without the division by
        |y_w|; `token_mean`, over the tokens of all chosen responses of the batch.

    Returns:
      The loss, and [B] metrics `rewards/*` and `logps/*`.

    Source:
      Paper: Liu et al. 2024, arXiv:2405.16436; Pang et al. 2024, arXiv:2404.19733.
      Code: YSLIU627/Regularized-Preference-Optimization@d0389c4 (both forms of Liu).
      Differences: TRL's paper index gives 0.005 and token means for RPO, which is neither form.
      Iterative RPO's division by |y_w| is known from secondary sources.
    """
    chosen = beta * log_ratio(policy.chosen, ref.chosen)
    rejected = beta * log_ratio(policy.rejected, ref.rejected)
    loss = per_example(-log_sigmoid(chosen - rejected)) + alpha * nll(policy.chosen, sft_reduction)
    return loss, pair_metrics(policy, chosen, rejected)
