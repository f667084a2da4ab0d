"""Self-play preference optimization, with hard and with soft preferences."""

from __future__ import annotations

from ..core.objective import objective
from ..core.types import Array, Loss, Metrics, Pairs, per_example
from ._common import Positive, between, log_ratio, pair_metrics


@objective(
    Pairs,
    source="Wu et al. 2024, arXiv:2405.00675, Eq. 4.7",
    columns=("preference",),
    check=between("preference", 0, 1),
)
def sppo(
    policy: Pairs, ref: Pairs, batch: dict[str, Array], *, beta: Positive = 1e-3
) -> tuple[Loss, Metrics]:
    """SPPO: least squares between each log-ratio and a target from the probability of winning.

        d(y) = log pi(y|x)/pi_ref(y|x)
        t    = (P - 1/2) / beta,  P the probability that y_w is preferred to y_l
        loss = (d(y_w) - t)^2 + (d(y_l) + t)^2

    averaged over pairs. The loss is 2 t^2 when the policy is the reference.

    Args:
      policy: both responses under the policy. Reads `logp`, [B].
      ref: both responses under the frozen reference, usually the policy of the previous round.
      batch: `preference`, [B], P, between 0 and 1.
      beta: reward per nat of log-ratio, the paper's 1/eta.

    Returns:
      The loss, and [B] metrics `rewards/*` and `logps/*`.

    Source:
      Paper: Wu et al. 2024, arXiv:2405.00675, Eq. 4.7.
      Code: uclaml/SPPO@5e61c4e, `sppo_single`.
      Differences: the paper's P compares a response with the reference's average response, which
      takes several samples per prompt. The authors halve the loss; TRL and Liger do not.
    """
    target = (batch["preference"] - 0.5) / beta
    return _to_targets(policy, ref, target, beta)


@objective(Pairs, source="Wu et al. 2024, arXiv:2405.00675, Eq. 4.7")
def sppo_hard(policy: Pairs, ref: Pairs, *, beta: Positive = 1e-3) -> tuple[Loss, Metrics]:
    """SPPO where the chosen response always wins.

        loss = (d(y_w) - 1/(2 beta))^2 + (d(y_l) + 1/(2 beta))^2

    averaged over pairs: `sppo` with P = 1. The loss is 1/(2 beta^2) when the policy is the
    reference.

    Args:
      policy: both responses under the policy. Reads `logp`, [B].
      ref: both responses under the frozen reference. Reads `logp`, [B].
      beta: reward per nat of log-ratio, the paper's 1/eta.

    Returns:
      The loss, and [B] metrics `rewards/*` and `logps/*`.

    Source:
      Paper: Wu et al. 2024, arXiv:2405.00675, Eq. 4.7 with P in {0, 1}.
      Code: TRL's `sppo_hard`.
      Differences: the authors halve the loss; TRL and Liger do not.
    """
    return _to_targets(policy, ref, 0.5 / beta, beta)


def _to_targets(
    policy: Pairs, ref: Pairs, target: float | Array, beta: float | Array
) -> tuple[Loss, Metrics]:
    chosen = log_ratio(policy.chosen, ref.chosen)
    rejected = log_ratio(policy.rejected, ref.rejected)
    loss = (chosen - target) ** 2 + (rejected + target) ** 2
    return per_example(loss), pair_metrics(policy, beta * chosen, beta * rejected)
