"""Supervised fine-tuning: maximum likelihood of demonstrations."""

from __future__ import annotations

from ..core.objective import objective
from ..core.types import Demos, Loss, Metrics, per_token


@objective(Demos, source="maximum likelihood")
def sft(policy: Demos) -> tuple[Loss, Metrics]:
    """SFT: the negative log-likelihood of the response.

        loss = - sum_t log pi(y_t | x, y_<t) / (scored tokens)

    with both sums over the whole batch, whatever the number of microbatches and devices.

    Args:
      policy: the response under the policy. Reads `logp` and `length`, [B].

    Returns:
      The loss in nats per token, and the [B] metric `logps/response`, nats.

    Source:
      Differences: none. The loss ignores prompt tokens.
    """
    return per_token(-policy.response.logp, policy.response.length), {
        "logps/response": policy.response.logp
    }
