"""Calibrated direct preference optimization."""

from __future__ import annotations

from jax.nn import log_sigmoid

from ..core.objective import objective
from ..core.types import Loss, Metrics, Pairs, per_example
from ._common import NonNegative, Positive, log_ratio, pair_metrics


@objective(Pairs, source="Xiao et al. 2024, arXiv:2412.14516")
def cal_dpo(
    policy: Pairs, ref: Pairs, *, beta: Positive = 0.001, lam: NonNegative = 0.5
) -> tuple[Loss, Metrics]:
    """Cal-DPO: DPO whose log-ratios are also calibrated to the scale of true rewards.

        d(y) = log pi(y|x)/pi_ref(y|x)
        loss = -log sigmoid(d(y_w) - d(y_l))
               + lam ((d(y_w) - 1/(2 beta))^2 + (d(y_l) + 1/(2 beta))^2)

    averaged over pairs. The loss is log 2 + lam/(2 beta^2) when the policy is the reference. Only
    the calibration depends on beta.

    Args:
      policy: both responses under the policy. Reads `logp`, [B].
      ref: both responses under the frozen reference. Reads `logp`, [B].
      beta: reward per nat of log-ratio, for rewards of +1/2 and -1/2.
      lam: weight of the calibration, per nat^2.

    Returns:
      The loss, and [B] metrics `rewards/*` and `logps/*`.

    Source:
      Paper: Xiao et al. 2024, arXiv:2412.14516. UNVERIFIED: its lam may be 1.
      Code: the authors' Cal-DPO, the source of the defaults.
      Differences: none from the code.
    """
    chosen = log_ratio(policy.chosen, ref.chosen)
    rejected = log_ratio(policy.rejected, ref.rejected)
    target = 0.5 / beta
    calibration = (chosen - target) ** 2 + (rejected + target) ** 2
    loss = -log_sigmoid(chosen - rejected) + lam * calibration
    return per_example(loss), pair_metrics(policy, beta * chosen, beta * rejected)
