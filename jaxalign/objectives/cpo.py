"""Contrastive preference optimization."""

from __future__ import annotations

from typing import Literal

from jax.nn import log_sigmoid

from ..core.objective import objective
from ..core.types import Loss, Metrics, Pairs, per_example
from ._common import NonNegative, Positive, nll, pair_metrics


@objective(Pairs, source="Xu et al. 2024, arXiv:2401.08417, Eq. 3")
def cpo(
    policy: Pairs,
    *,
    beta: Positive = 0.1,
    alpha: NonNegative = 1.0,
    sft_reduction: Literal["token_mean", "sum"] = "token_mean",
) -> tuple[Loss, Metrics]:
    """CPO: DPO against a uniform reference, plus the likelihood of the chosen response.

        loss = -log sigmoid(beta (log pi(y_w|x) - log pi(y_l|x)))  averaged over pairs
               - alpha log pi(y_w|x)                               averaged over tokens

    Args:
      policy: both responses under the policy. Reads `logp`, `length`, [B].
      beta: reward per nat.
      alpha: weight of the likelihood term, per nat as averaged by `sft_reduction`.
      sft_reduction: average of the likelihood term: `token_mean`, over the tokens of all chosen
        responses of the batch; `sum`, over the responses.

    Returns:
      The loss, and [B] metrics `rewards/*` and `logps/*`.

    Source:
      Paper: Xu et al. 2024, arXiv:2401.08417, Eq. 3, with `sum`.
      Code: fe1ixxu/ALMA and TRL's CPOTrainer, with `token_mean`.
      Differences: none. The current ALMA also penalizes the rejected response (ARPO).
    """
    chosen, rejected = beta * policy.chosen.logp, beta * policy.rejected.logp
    loss = per_example(-log_sigmoid(chosen - rejected)) + alpha * nll(policy.chosen, sft_reduction)
    return loss, pair_metrics(policy, chosen, rejected)
