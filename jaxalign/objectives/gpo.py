"""General preference optimization: fits log-ratios to mean preference scores."""

from __future__ import annotations

from ..core.objective import objective
from ..core.types import Array, Loss, Metrics, Pairs, per_example
from ._common import Positive, log_ratio, pair_metrics


@objective(
    Pairs,
    source="Zhang et al. 2024, GPO, arXiv:2410.02197",
    columns=("score_chosen", "score_rejected"),
)
def gpo(
    policy: Pairs, ref: Pairs, batch: dict[str, Array], *, beta: Positive = 1e-3
) -> tuple[Loss, Metrics]:
    """GPO: fits each log-ratio to the score of a general preference model for the response.

        d(y) = log pi(y|x)/pi_ref(y|x)
        loss = 1/2 ((d(y_w) - s(y_w)/beta)^2 + (d(y_l) - s(y_l)/beta)^2)

    averaged over pairs. Both responses are sampled from the reference, which is the policy of the
    previous iteration; they are the best and the worst of a few by s.

    Args:
      policy: both responses under the policy. Reads `logp`, [B].
      ref: both responses under the frozen reference. Reads `logp`, [B].
      batch: `score_chosen` and `score_rejected`, [B], s: the mean score of the response against the
        responses sampled for its prompt; 0 means equally good.
      beta: score per nat; s/beta is the target of a log-ratio, a thousand nats for a score of 1 by
        default.

    Returns:
      The loss, and [B] metrics `rewards/*` (beta times log-ratio) and `logps/*`.

    Source:
      Paper: Zhang et al. 2024, arXiv:2410.02197.
      Code: general-preference/general-preference-model@a376d95 trains the preference model.
      Differences: none known. UNVERIFIED: whether s has 1/2 subtracted; with win rates minus 1/2 as
      s, the loss is half of SPPO.
    """
    chosen = log_ratio(policy.chosen, ref.chosen)
    rejected = log_ratio(policy.rejected, ref.rejected)
    chosen_error = chosen - batch["score_chosen"] / beta
    rejected_error = rejected - batch["score_rejected"] / beta
    loss = 0.5 * (chosen_error**2 + rejected_error**2)
    return per_example(loss), pair_metrics(policy, beta * chosen, beta * rejected)
