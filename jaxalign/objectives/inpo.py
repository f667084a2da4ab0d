"""Iterative Nash policy optimization: one update of no-regret self-play."""

from __future__ import annotations

from ..core.objective import objective
from ..core.types import Loss, Metrics, Pairs, per_example
from ._common import Fraction, Positive, log_ratio, pair_metrics


@objective(Pairs, source="Zhang et al. 2024, arXiv:2407.00617")
def inpo(
    policy: Pairs, ref: Pairs, start: Pairs, *, eta: Positive = 0.005, ratio: Fraction = 1 / 3
) -> tuple[Loss, Metrics]:
    """INPO: least squares to a margin over a mixture of the reference and the last policy.

        d_q  = log pi(y_w|x)/q(y_w|x) - log pi(y_l|x)/q(y_l|x)
        loss = ((tau/eta) d_ref + (1 - tau/eta) d_t - 1/(2 eta))^2

    averaged over pairs; d_t is relative to pi_t, the policy that the stage starts from and that
    sampled the pairs. The loss is 1/(4 eta^2) when the policy equals both. Without `reference.path`
    both are one model, and INPO is `ipo` with sums.

    Args:
      policy: both responses under the policy. Reads `logp`, [B].
      ref: both responses under the frozen reference, the same in every iteration. Reads `logp`,
        [B].
      start: both responses under pi_t. Reads `logp`, [B].
      eta: inverse of the target margin, 1/(2 eta) nats; larger keeps the policy nearer both.
      ratio: tau/eta, the share of the reference in the mixture.

    Returns:
      The loss, and [B] metrics `rewards/*` (eta times the mixed log-ratio) and `logps/*`.

    Source:
      Paper: Zhang et al. 2024, arXiv:2407.00617; eta 0.005, tau = eta/3.
      Differences: none in the loss. Sampling and judging are not included: one stage is one
      iteration, whose `reference.path` is the first model.
    """
    chosen, rejected = (
        ratio * log_ratio(y, r) + (1 - ratio) * log_ratio(y, s)
        for y, r, s in (
            (policy.chosen, ref.chosen, start.chosen),
            (policy.rejected, ref.rejected, start.rejected),
        )
    )
    loss = (chosen - rejected - 1 / (2 * eta)) ** 2
    return per_example(loss), pair_metrics(policy, eta * chosen, eta * rejected)
