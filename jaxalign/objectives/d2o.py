"""Distributional dispreference optimization: from a bad response to the model's samples."""

from __future__ import annotations

import jax.numpy as jnp
from jax.nn import log_sigmoid

from ..core.objective import objective
from ..core.types import Dispreferred, Loss, Metrics, per_example
from ._common import Positive, log_ratio


@objective(Dispreferred, source="Duan et al. 2024, arXiv:2403.03419")
def d2o(
    policy: Dispreferred, ref: Dispreferred, *, beta: Positive = 0.1, alpha: Positive = 0.1
) -> tuple[Loss, Metrics]:
    """D2O: a bad response against the average of R samples of the model itself.

        m    = beta/R sum_{i=1..R} log pi(y_i|x)/pi_ref(y_i|x) - alpha log pi(y_l|x)/pi_ref(y_l|x)
        loss = -log sigmoid(m)

    averaged over examples. The loss is log 2 when the policy is the reference, and it equals DPO
    for R = 1 and alpha = beta. No good response is needed.

    Args:
      policy: rejected response, [B], and samples, [B, R], under the policy. Reads `logp`.
      ref: the same responses under the frozen reference. Reads `logp`.
      beta: reward per nat of the samples' log-ratio.
      alpha: reward per nat of the rejected response's log-ratio.

    Returns:
      The loss, and [B] metrics `rewards/*` and `logps/*` (samples: their average).

    Source:
      Paper: Duan et al. 2024, arXiv:2403.03419; R = 11.
      Differences: UNVERIFIED: the formula is known from a third party's notes. There the samples
      and the rejected response have separate references, in practice the same model.
    """
    samples = beta * log_ratio(policy.samples, ref.samples).mean(-1)
    rejected = alpha * log_ratio(policy.rejected, ref.rejected)
    margin = samples - rejected
    metrics = {
        "rewards/samples": samples,
        "rewards/rejected": rejected,
        "rewards/margins": margin,
        "rewards/accuracies": (margin > 0).astype(jnp.float32),
        "logps/samples": policy.samples.logp.mean(-1),
        "logps/rejected": policy.rejected.logp,
    }
    return per_example(-log_sigmoid(margin)), metrics
