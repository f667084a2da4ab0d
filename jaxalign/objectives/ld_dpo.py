"""Direct preference optimization that discounts the excess length of the longer response."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jax.nn import log_sigmoid

from ..core.objective import objective
from ..core.types import Array, Loss, Metrics, Pairs, SequenceStats, per_example
from ._common import Fraction, Positive, pair_metrics


@objective(Pairs, source="Liu et al. 2024, arXiv:2409.06411")
def ld_dpo(
    policy: Pairs,
    ref: Pairs,
    *,
    beta: Positive = 0.1,
    alpha: Fraction = 0.5,
    desensitize: Literal["both", "policy"] = "both",
) -> tuple[Loss, Metrics]:
    """LD-DPO: DPO where tokens beyond the length of the shorter response count less.

        n    = min(|y_w|, |y_l|)
        s(y) = sum over t <= n of log p_t + alpha sum over t > n of log p_t
        h    = (s(y_w) - s_ref(y_w)) - (s(y_l) - s_ref(y_l))
        loss = -log sigmoid(beta h)

    averaged over pairs. The loss is log 2 when the policy is the reference.

    Args:
      policy: both responses under the policy. Reads token `logp`, [B, T], `length`, [B].
      ref: both responses under the frozen reference.
      beta: reward per nat of log-ratio; larger keeps the policy nearer the reference.
      alpha: weight of a token beyond the shorter length; 1 is `dpo`.
      desensitize: the models that alpha applies to: `both` as above; `policy`, where s_ref counts
        every token fully, so that h is not 0 at the reference.

    Returns:
      The loss, and [B] metrics `rewards/*` and `logps/*`.

    Source:
      Paper: Liu et al. 2024, arXiv:2409.06411. UNVERIFIED: which of the two the paper means.
      Differences: TRL 0.29 and later do `both`; TRL up to 0.27 and LLaMA-Factory `policy`, and
      some versions of TRL count n from the start of the prompt.
    """
    shorter = jnp.minimum(policy.chosen.length, policy.rejected.length)

    def reward(y: SequenceStats, ref_y: SequenceStats) -> Array:
        weights = jnp.where(jnp.cumsum(y.mask, -1) <= shorter[..., None], 1.0, alpha)
        ref_weights = weights if desensitize == "both" else 1.0
        return beta * (weights * y.token["logp"] - ref_weights * ref_y.token["logp"]).sum(-1)

    chosen = reward(policy.chosen, ref.chosen)
    rejected = reward(policy.rejected, ref.rejected)
    return per_example(-log_sigmoid(chosen - rejected)), pair_metrics(policy, chosen, rejected)
