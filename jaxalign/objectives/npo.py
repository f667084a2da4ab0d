"""Negative preference optimization, for unlearning."""

from __future__ import annotations

from jax.nn import softplus

from ..core.objective import objective
from ..core.types import Forget, Loss, Metrics, per_example
from ._common import Positive, log_ratio


@objective(Forget, source="Zhang et al. 2024, arXiv:2404.05868, Eq. 3")
def npo(policy: Forget, ref: Forget, *, beta: Positive = 0.1) -> tuple[Loss, Metrics]:
    """NPO: the rejected half of DPO; lowers a response, and slows down as it becomes less likely.

        loss = -(2/beta) log sigmoid(-beta log pi(y|x)/pi_ref(y|x))

    averaged over examples. The loss is (2/beta) log 2 when the policy is the reference. There, and
    everywhere in the limit of beta 0, its gradient is the gradient of log pi(y|x).

    Args:
      policy: the response to forget under the policy. Reads `logp`, [B].
      ref: the response to forget under the frozen reference. Reads `logp`, [B].
      beta: reward per nat of log-ratio; larger stops sooner.

    Returns:
      The loss, and [B] metrics `rewards/response` and `logps/response`.

    Source:
      Paper: Zhang et al. 2024, arXiv:2404.05868, Eq. 3; the number of the equation is UNVERIFIED.
      Code: licong-lin/negative-preference-optimization@1207bbe.
      Differences: none. The terms on data to retain (`npo_grad_diff`, `npo_KL`) are not included.
    """
    reward = beta * log_ratio(policy.response, ref.response)
    metrics = {"rewards/response": reward, "logps/response": policy.response.logp}
    return per_example(2 / beta * softplus(reward)), metrics
