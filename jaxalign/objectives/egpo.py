"""Extragradient preference optimization: online IPO against an opponent."""

from __future__ import annotations

from typing import Literal

from ..core.objective import objective
from ..core.types import Array, Loss, Metrics, Pairs, per_example
from ._common import Positive, avg_log_ratio, between, log_ratio, pair_metrics


@objective(
    Pairs,
    source="Zhou et al. 2025, arXiv:2503.08942",
    columns=("preference_gap",),
    check=between("preference_gap", -1, 1),
)
def egpo(
    policy: Pairs,
    ref: Pairs,
    batch: dict[str, Array],
    *,
    beta: Positive = 0.1,
    reduction: Literal["sum", "mean"] = "mean",
) -> tuple[Loss, Metrics]:
    """EGPO: fits the difference of log-ratios to the difference of win rates against an opponent.

        d(y) = log pi(y|x)/pi_ref(y|x) / |y|
        loss = (d(y_w) - d(y_l) - (P(y_w > o) - P(y_l > o)) / beta)^2

    averaged over pairs. o is a response of the opponent: the policy itself or, in the second half
    of an extragradient step, the policy after the first half. The gap may have either sign: it does
    not matter which response is called chosen.

    Args:
      policy: both responses under the policy. Reads `logp` and `length`, [B].
      ref: both responses under the frozen reference.
      batch: `preference_gap`, [B], P(y_w > o) - P(y_l > o), between -1 and 1.
      beta: strength of the pull to the reference.
      reduction: scale of the log-ratios: `mean` as above, per token; `sum`, without the division by
        |y|.

    Returns:
      The loss, and [B] metrics `rewards/*` (beta times d) and `logps/*`.

    Source:
      Paper: Zhou et al. 2025, arXiv:2503.08942, with `sum`.
      Code: zhourunlong/EGPO@f295bf3, whose `normalize_logprobs` is `mean`.
      Differences: none in the loss. The extragradient step and its sampling are not included; if
      the opponent is the policy, the loss is online IPO.
    """
    ratio = avg_log_ratio if reduction == "mean" else log_ratio
    chosen, rejected = ratio(policy.chosen, ref.chosen), ratio(policy.rejected, ref.rejected)
    loss = (chosen - rejected - batch["preference_gap"] / beta) ** 2
    return per_example(loss), pair_metrics(policy, beta * chosen, beta * rejected)
