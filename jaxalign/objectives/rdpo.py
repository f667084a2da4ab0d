"""Direct preference optimization that also learns why the chosen response is better."""

from __future__ import annotations

from typing import Literal

from jax.nn import log_sigmoid

from ..core.objective import objective
from ..core.types import Loss, Metrics, Rationales, per_example
from ._common import Positive, log_ratio, pair_metrics


@objective(Rationales, source="Just et al. 2024, arXiv:2407.14477, RDPO")
def rdpo(
    policy: Rationales,
    ref: Rationales,
    *,
    beta: Positive = 0.1,
    gamma: Positive = 0.001,
    form: Literal["nll_sum", "nll_mean", "logsigmoid"] = "nll_sum",
) -> tuple[Loss, Metrics]:
    """RDPO: DPO plus the likelihood of a rationale r for the preference.

        h    = log pi(y_w|x)/pi_ref(y_w|x) - log pi(y_l|x)/pi_ref(y_l|x)
        loss = -log sigmoid(beta h) - gamma log pi(r|x, y_w, y_l)

    averaged over examples. `robust_dpo` and `r_dpo` are other methods.

    Args:
      policy: both responses and the rationale under the policy. Reads `logp`, `length`, [B].
      ref: both responses under the frozen reference. Reads `logp`, [B].
      beta: reward per nat of log-ratio; larger keeps the policy nearer the reference.
      gamma: weight of the rationale; about 1 with `nll_mean`, which is per token.
      form: form of the rationale's term: `nll_sum` as above; `nll_mean`, with log pi(r|...) divided
        by the tokens of r; `logsigmoid`, -log sigmoid(gamma log pi(r|...)), at least log 2.

    Returns:
      The loss, and [B] metrics `rewards/*` and `logps/*`.

    Source:
      Paper: Just et al. 2024, arXiv:2407.14477.
      Code: reads-lab/preference-learning-with-rationales@16111a1, which is `logsigmoid`, gamma 0.1
      (0.001 in its readme).
      Differences: none from the paper except the wording of the rationale's prompt, which is ours.
    """
    chosen = beta * log_ratio(policy.chosen, ref.chosen)
    rejected = beta * log_ratio(policy.rejected, ref.rejected)
    y = policy.rationale
    match form:
        case "nll_sum":
            reason = -gamma * y.logp
        case "nll_mean":
            reason = -gamma * y.avg_logp
        case "logsigmoid":
            reason = -log_sigmoid(gamma * y.logp)
    metrics = pair_metrics(policy, chosen, rejected) | {"logps/rationale": y.logp}
    return per_example(-log_sigmoid(chosen - rejected) + reason), metrics
