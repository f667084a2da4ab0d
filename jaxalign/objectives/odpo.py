"""Direct preference optimization with an offset from the scores of the two responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
from jax.nn import log_sigmoid

from ..core.objective import objective
from ..core.types import Array, Loss, Metrics, Pairs, per_example
from ._common import NonNegative, Positive, log_ratio, pair_metrics

TINY = 1e-37


def in_order(columns: Mapping[str, Any]) -> str:
    """A `check` for an objective: the chosen response must have the higher score."""
    wrong = "score_chosen must be above score_rejected"
    return "" if columns["score_chosen"] > columns["score_rejected"] else wrong


@objective(
    Pairs,
    source="Amini et al. 2024, arXiv:2402.10571",
    columns=("score_chosen", "score_rejected"),
    check=in_order,
)
def odpo(
    policy: Pairs,
    ref: Pairs,
    batch: dict[str, Array],
    *,
    beta: Positive = 0.1,
    alpha: NonNegative = 1.0,
    scale: Literal["log", "difference"] = "log",
) -> tuple[Loss, Metrics]:
    """ODPO: DPO where the margin must exceed an offset that grows with the gap in score.

        h    = log pi(y_w|x)/pi_ref(y_w|x) - log pi(y_l|x)/pi_ref(y_l|x)
        loss = -log sigmoid(beta h - alpha log(score_w - score_l))

    averaged over pairs. When the policy is the reference the loss is log(1 + (score_w -
    score_l)^alpha); a pair of equal scores has no gradient.

    Args:
      policy: both responses under the policy. Reads `logp`, [B].
      ref: both responses under the frozen reference. Reads `logp`, [B].
      batch: `score_chosen`, `score_rejected`, [B], the first one larger.
      beta: reward per nat of log-ratio; larger keeps the policy nearer the reference.
      alpha: reward per unit of the offset; 0 is `dpo`.
      scale: form of the offset: `log` as above; `difference`, alpha (score_w - score_l).

    Returns:
      The loss, and [B] metrics `rewards/*` (without the offset) and `logps/*`.

    Source:
      Paper: Amini et al. 2024, arXiv:2402.10571.
      Code: rycolab/odpo@c4a01be.
      Differences: none. For the code's `ratio`, give logarithms of the scores and `difference`.
    """
    chosen = beta * log_ratio(policy.chosen, ref.chosen)
    rejected = beta * log_ratio(policy.rejected, ref.rejected)
    gap = batch["score_chosen"] - batch["score_rejected"]
    # Padding has equal scores; its loss must be finite to vanish with its weight.
    offset = alpha * (jnp.log(jnp.maximum(gap, TINY)) if scale == "log" else gap)
    loss = -log_sigmoid(chosen - rejected - offset)
    return per_example(loss), pair_metrics(policy, chosen, rejected)
