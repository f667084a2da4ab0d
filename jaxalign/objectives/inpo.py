"""Iterative Nash policy optimisation: one update of no-regret self-play."""

from __future__ import annotations

from ..core.objective import objective
from ..core.types import Loss, Metrics, Pairs, per_example
from ._common import Fraction, Positive, log_ratio, pair_metrics


@objective(Pairs, source="Zhang et al. 2024, arXiv:2407.00617")
def inpo(
    policy: Pairs, ref: Pairs, start: Pairs, *, eta: Positive = 0.005, ratio: Fraction = 1 / 3
) -> tuple[Loss, Metrics]:
    """INPO, least squares to a margin over a mixture of the reference and the last policy.

        d_q  = log pi(y_w|x)/q(y_w|x) - log pi(y_l|x)/q(y_l|x)
        loss = ((tau/eta) d_ref + (1 - tau/eta) d_t - 1/(2 eta))^2

    averaged over pairs, with pi_t, the policy that the stage starts from and that sampled the
    pairs. It is 1/(4 eta^2) when the policy is both. Without `reference.path` they are one, and it
    is `ipo` with sums.

    Args:
      policy: chosen and rejected under the policy. Reads `logp`, [B].
      ref: the same under the frozen reference, of every iteration. Reads `logp`, [B].
      start: the same under pi_t. Reads `logp`, [B].
      eta: sets the margin, 1/(2 eta) nats; larger keeps the policy nearer both.
      ratio: tau/eta, how much of the pull is towards the reference and not to pi_t.

    Returns:
      The loss, and [B] metrics `rewards/*` (eta times the mixed log-ratio) and `logps/*`.

    Source:
      Paper: Zhang et al. 2024, arXiv:2407.00617; eta 0.005, tau = eta/3.
      Differences: none in the loss. The loop of sampling and judging is not here: one stage is one
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
