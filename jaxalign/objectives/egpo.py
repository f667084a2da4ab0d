"""Extragradient preference optimisation: online IPO against an opponent."""

from __future__ import annotations

from typing import Literal

from ..core.objective import objective
from ..core.types import Array, Loss, Metrics, Pairs, SequenceStats, per_example
from ._common import Positive, between, log_ratio, pair_metrics


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
    """EGPO's loss, a difference of log-ratios regressed on one of wins against an opponent.

        d(y) = log pi(y|x)/pi_ref(y|x) / |y|
        loss = (d(y_w) - d(y_l) - (P(y_w > o) - P(y_l > o)) / beta)^2

    averaged over pairs. o is a response of the opponent, the policy itself or, in the second half
    of an extragradient step, the policy half a step on. The gap may have either sign: which of
    the two is called chosen does not matter.

    Args:
      policy: chosen and rejected under the policy. Reads `logp` and `length`, [B].
      ref: the same under the frozen reference.
      batch: `preference_gap`, [B], P(y_w > o) - P(y_l > o), between -1 and 1.
      beta: larger keeps the policy nearer the reference.
      reduction: `mean` is above, per token; `sum` leaves out the division by |y|.

    Returns:
      The loss, and [B] metrics `rewards/*` (beta times d) and `logps/*`.

    Source:
      Paper: Zhou et al. 2025, arXiv:2503.08942, with `sum`.
      Code: zhourunlong/EGPO@f295bf3, whose `normalize_logprobs` is `mean`.
      Differences: none. The extragradient step and its sampling are not here: this is the loss
      for given responses, and with an opponent that is the policy it is online IPO.
    """
    chosen = _log_ratio(policy.chosen, ref.chosen, reduction)
    rejected = _log_ratio(policy.rejected, ref.rejected, reduction)
    loss = (chosen - rejected - batch["preference_gap"] / beta) ** 2
    return per_example(loss), pair_metrics(policy, beta * chosen, beta * rejected)


def _log_ratio(policy: SequenceStats, ref: SequenceStats, reduction: str) -> Array:
    return policy.avg_logp - ref.avg_logp if reduction == "mean" else log_ratio(policy, ref)
