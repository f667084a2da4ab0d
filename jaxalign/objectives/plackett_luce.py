"""Direct preference optimization on a ranking of R responses."""

from __future__ import annotations

import jax.numpy as jnp
from jax.lax import cumlogsumexp

from ..core.objective import objective
from ..core.types import Loss, Metrics, Ranked, per_example
from ._common import Positive, log_ratio, ranked_metrics


@objective(Ranked, source="Rafailov et al. 2023, arXiv:2305.18290, Eq. 20")
def plackett_luce(policy: Ranked, ref: Ranked, *, beta: Positive = 0.1) -> tuple[Loss, Metrics]:
    """DPO under the Plackett-Luce model: each response is the best of the remaining ones.

        m_k  = beta log pi(y_k|x)/pi_ref(y_k|x)
        loss = - sum_{k=1..R} [ m_k - log sum_{j=k..R} exp(m_j) ]

    averaged over examples; y_1 is the best response. The loss is log R! when the policy is the
    reference, and equals DPO for R = 2.

    Args:
      policy: the R responses, best first, under the policy. Reads `logp`, [B, R].
      ref: the R responses, best first, under the frozen reference. Reads `logp`, [B, R].
      beta: reward per nat of log-ratio; larger keeps the policy nearer the reference.

    Returns:
      The loss, and [B] metrics `rewards/*` (chosen: the best) and `logps/responses`.

    Source:
      Paper: Rafailov et al. 2023, arXiv:2305.18290, Eq. 20.
      Differences: none. The last term, a choice among one, is 0.
    """
    reward = beta * log_ratio(policy.responses, ref.responses)
    left = cumlogsumexp(reward, axis=1, reverse=True)
    best = jnp.zeros(reward.shape[0], jnp.int32)
    return per_example((left - reward).sum(-1)), ranked_metrics(policy.responses, reward, best)
