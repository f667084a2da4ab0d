"""Direct preference optimisation that also learns why the chosen response is better."""

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
    """RDPO, DPO plus the likelihood of a rationale r for the preference.

        h    = log pi(y_w|x)/pi_ref(y_w|x) - log pi(y_l|x)/pi_ref(y_l|x)
        loss = -log sigmoid(beta h) - gamma log pi(r|x, y_w, y_l)

    averaged over examples. Not to be confused with `robust_dpo` and `r_dpo`.

    Args:
      policy: chosen, rejected and rationale under the policy. Reads `logp`, `length`, [B].
      ref: the same under the frozen reference, whose rationale is not read. Reads `logp`, [B].
      beta: reward per nat of log-ratio; larger keeps the policy nearer the reference.
      gamma: weight of the rationale; with `nll_mean`, which is per token, about 1 instead.
      form: `nll_sum` is above; `nll_mean` divides log pi(r|...) by the tokens of r; `logsigmoid`
        has -log sigmoid(gamma log pi(r|...)), least at log 2.

    Returns:
      The loss, and [B] metrics `rewards/*` and `logps/*`.

    Source:
      Paper: Just et al. 2024, arXiv:2407.14477.
      Code: reads-lab/preference-learning-with-rationales@16111a1, which is `logsigmoid`, gamma 0.1
      (0.001 in its readme).
      Differences: none from the paper but the words of the rationale's prompt, which are ours.
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
