"""Efficient exact optimization, on pairs."""

from __future__ import annotations

from typing import Annotated

import annotated_types
import jax.numpy as jnp

from ..core.numerics import bernoulli_kl
from ..core.objective import objective
from ..core.types import Loss, Metrics, Pairs, per_example
from ._common import Positive, log_ratio, pair_metrics

Smoothing = Annotated[float, annotated_types.Interval(gt=0, lt=0.5)]


@objective(Pairs, source="Ji et al. 2024, arXiv:2402.00856, Eq. 16")
def exo_pair(
    policy: Pairs, ref: Pairs, *, beta: Positive = 0.1, label_smoothing: Smoothing = 1e-3
) -> tuple[Loss, Metrics]:
    """EXO on pairs: the reverse KL where DPO has the forward KL.

        q    = sigmoid(beta (log pi(y_w|x)/pi_ref(y_w|x) - log pi(y_l|x)/pi_ref(y_l|x)))
        loss = q log(q / (1 - eps)) + (1 - q) log((1 - q) / eps) = KL(q || 1 - eps)

    averaged over pairs. The loss is -log 2 - log(eps (1 - eps))/2 when the policy is the reference,
    and has its minimum 0 where q is 1 - eps. The gradient also vanishes as q goes to 0.

    Args:
      policy: both responses under the policy. Reads `logp`, [B].
      ref: both responses under the frozen reference. Reads `logp`, [B].
      beta: reward per nat of log-ratio; larger keeps the policy nearer the reference.
      label_smoothing: eps, the probability that the label is wrong; at 0 the loss would be
        infinite.

    Returns:
      The loss, and [B] metrics `rewards/*` and `logps/*`.

    Source:
      Paper: Ji et al. 2024, arXiv:2402.00856, Eq. 16.
      Code: haozheji/exact-optimization; TRL's `exo_pair`, with this default.
      Differences: the authors' code has log eps = -10 and log(1 - eps) = 0, which is
      `label_smoothing` 4.54e-5 to 5e-5 nats.
    """
    chosen = beta * log_ratio(policy.chosen, ref.chosen)
    rejected = beta * log_ratio(policy.rejected, ref.rejected)
    margin = chosen - rejected
    aim = jnp.log1p(-label_smoothing) - jnp.log(label_smoothing)
    loss = bernoulli_kl(aim, margin, aim - margin)
    return per_example(loss), pair_metrics(policy, chosen, rejected)
