"""Direct preference optimization with length-normalized log-ratios."""

from __future__ import annotations

from jax.nn import log_sigmoid

from ..core.objective import objective
from ..core.types import Loss, Metrics, Pairs, per_example
from ._common import Positive, avg_log_ratio, pair_metrics


@objective(Pairs, source="Lambert et al. 2024, Tulu 3, arXiv:2411.15124")
def sigmoid_norm(policy: Pairs, ref: Pairs, *, beta: Positive = 5.0) -> tuple[Loss, Metrics]:
    """Length-normalized DPO: log-ratios per token where DPO sums them.

        d(y) = log pi(y|x)/pi_ref(y|x) / |y|
        loss = -log sigmoid(beta (d(y_w) - d(y_l)))

    averaged over pairs. The loss is log 2 when the policy is the reference.

    Args:
      policy: both responses under the policy. Reads `logp`, `length`, [B].
      ref: both responses under the frozen reference.
      beta: reward per nat-per-token of log-ratio; about |y| times the beta of `dpo`.

    Returns:
      The loss, and [B] metrics `rewards/*` and `logps/*`.

    Source:
      Paper: Lambert et al. 2024, Tulu 3, arXiv:2411.15124; Meng et al. 2024, arXiv:2405.14734,
      has it as a baseline.
      Code: allenai/open-instruct, `dpo_norm`, beta 5.
      Differences: none; TRL's `sigmoid_norm` has beta 0.1 by default.
    """
    chosen = beta * avg_log_ratio(policy.chosen, ref.chosen)
    rejected = beta * avg_log_ratio(policy.rejected, ref.rejected)
    return per_example(-log_sigmoid(chosen - rejected)), pair_metrics(policy, chosen, rejected)
