"""Direct preference optimization on a ranking of R responses."""

from __future__ import annotations

import jax.numpy as jnp
from jax.lax import cumlogsumexp
from jax.nn import softplus

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
    # Of each place, the loss is softplus(rest - reward), rest the responses after it together.
    rest = cumlogsumexp(reward, axis=1, reverse=True)[:, 1:]
    loss = softplus(rest - reward[:, :-1]).sum(-1)
    best = jnp.zeros(reward.shape[0], jnp.int32)
    return per_example(loss), ranked_metrics(policy.responses, reward, best)
