"""Negative preference optimisation: unlearning from responses to forget."""

from __future__ import annotations

from jax.nn import softplus

from ..objective import objective
from ..types import Demos, Loss, Metrics, per_example
from ._common import Positive, log_ratio


@objective(Demos, source="Zhang et al. 2024, arXiv:2404.05868")
def npo(policy: Demos, ref: Demos, *, beta: Positive = 0.1) -> tuple[Loss, Metrics]:
    """NPO, the half of DPO that makes rejected responses less likely.

        loss = -(2/beta) log sigmoid(-beta log pi(y|x)/pi_ref(y|x))

    averaged over examples; every response is one to forget. It is (2/beta) log 2 when the policy
    is the reference. The slope per nat is 2 sigmoid(beta log-ratio): 1 at the reference, at most
    2, and 0 for what is forgotten. As beta nears 0 it stays 1: gradient ascent.

    Args:
      policy: the response under the policy. Reads `logp`, [B].
      ref: the same under the model before unlearning. Reads `logp`, [B].
      beta: per nat; larger stops sooner.

    Returns:
      The loss, and [B] metrics `rewards/response` (beta times log-ratio) and `logps/response`.

    Source:
      Paper: Zhang et al. 2024, arXiv:2404.05868.
      Code: licong-lin/negative-preference-optimization@1207bbe.
      Differences: none. Its variants that also train on, or hold a KL on, data to retain are not
      here; without them the rest of the model's use is at risk.
    """
    reward = beta * log_ratio(policy.response, ref.response)
    metrics = {"rewards/response": reward, "logps/response": policy.response.logp}
    return per_example(2 / beta * softplus(reward)), metrics
