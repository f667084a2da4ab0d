"""Identity preference optimization."""

from __future__ import annotations

from typing import Literal

from ..core.objective import objective
from ..core.types import Loss, Metrics, Pairs, per_example
from ._common import Positive, avg_log_ratio, log_ratio, pair_metrics


@objective(Pairs, source="Azar et al. 2023, arXiv:2310.12036, Eq. 17")
def ipo(
    policy: Pairs,
    ref: Pairs,
    *,
    tau: Positive = 0.1,
    reduction: Literal["mean", "sum"] = "mean",
) -> tuple[Loss, Metrics]:
    """IPO: least squares between a difference of log-ratios and a fixed margin.

        d(y) = log pi(y|x)/pi_ref(y|x) / |y|
        loss = (d(y_w) - d(y_l) - 1/(2 tau))^2

    averaged over pairs. The loss is 1/(4 tau^2) when the policy is the reference, and it pushes
    back a pair whose margin exceeds 1/(2 tau).

    Args:
      policy: both responses under the policy. Reads `logp`, `length`, [B].
      ref: both responses under the frozen reference.
      tau: inverse of the target margin, 1/(2 tau) nats; larger keeps the policy nearer the
        reference.
      reduction: scale of the log-ratios: `mean` as above, in nats per token; `sum`, without the
        division by |y|.

    Returns:
      The loss, and [B] metrics `rewards/*` (tau times log-ratio) and `logps/*`.

    Source:
      Paper: Azar et al. 2023, arXiv:2310.12036, Eq. 17, printed with sums.
      Code: eric-mitchell/dpo@f8b8c0f has sums, TRL (where tau is `beta`) and HALOs means; according
      to TRL's source, the paper's authors said that their results use means.
      Differences: HALOs does not count tokens whose log-ratio is 0, so it is NaN at the reference.
    """
    ratio = avg_log_ratio if reduction == "mean" else log_ratio
    chosen, rejected = ratio(policy.chosen, ref.chosen), ratio(policy.rejected, ref.rejected)
    loss = (chosen - rejected - 1 / (2 * tau)) ** 2
    return per_example(loss), pair_metrics(policy, tau * chosen, tau * rejected)
