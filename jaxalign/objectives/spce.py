"""Direct preference optimization on soft preferences."""

from __future__ import annotations

from jax.nn import log_sigmoid

from ..core.objective import objective
from ..core.types import Array, Loss, Metrics, Pairs, per_example
from ._common import Positive, between, log_ratio, pair_metrics


@objective(
    Pairs,
    source="Zhai et al. 2024, OSP, arXiv:2405.14103",
    columns=("preference",),
    check=between("preference", 0, 1),
)
def spce(
    policy: Pairs, ref: Pairs, batch: dict[str, Array], *, beta: Positive = 0.1
) -> tuple[Loss, Metrics]:
    """Soft-preference cross-entropy: DPO where each pair has its own probability of being right.

        h    = log pi(y_w|x)/pi_ref(y_w|x) - log pi(y_l|x)/pi_ref(y_l|x)
        loss = -P log sigmoid(beta h) - (1 - P) log sigmoid(-beta h)

    averaged over pairs. The loss is log 2 when the policy is the reference, and has its minimum
    where beta h is the log-odds of P.

    Args:
      policy: both responses under the policy. Reads `logp`, [B].
      ref: both responses under the frozen reference. Reads `logp`, [B].
      batch: `preference`, [B], P, the probability that y_w is preferred to y_l, between 0 and 1.
      beta: reward per nat of log-ratio; larger keeps the policy nearer the reference.

    Returns:
      The loss, and [B] metrics `rewards/*` and `logps/*`.

    Source:
      Paper: Zhai et al. 2024, online self-preferring models, arXiv:2405.14103. UNVERIFIED: its
      exact form; this is cDPO, `dpo` with `label_smoothing`, with 1 - P for each pair.
      Differences: none known. The paper's loop, which samples and judges pairs, is not included.
    """
    chosen = beta * log_ratio(policy.chosen, ref.chosen)
    rejected = beta * log_ratio(policy.rejected, ref.rejected)
    margin, p = chosen - rejected, batch["preference"]
    loss = -p * log_sigmoid(margin) - (1 - p) * log_sigmoid(-margin)
    return per_example(loss), pair_metrics(policy, chosen, rejected)
