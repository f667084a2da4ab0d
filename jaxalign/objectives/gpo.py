"""General preference optimisation: log-ratios regressed on mean preference scores."""

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
    """GPO, each log-ratio is fitted to what a general preference model gives the response.

        d(y) = log pi(y|x)/pi_ref(y|x)
        loss = 1/2 ((d(y_w) - s(y_w)/beta)^2 + (d(y_l) - s(y_l)/beta)^2)

    averaged over pairs. Both responses are sampled from the reference, which is the policy of the
    iteration before, and are the best and the worst of a few by s.

    Args:
      policy: chosen and rejected under the policy. Reads `logp`, [B].
      ref: the same under the frozen reference. Reads `logp`, [B].
      batch: `score_chosen` and `score_rejected`, [B], s: the mean over the responses sampled for
        the prompt of the score of this one against them, 0 being as good as they.
      beta: score per nat; s/beta is where a log-ratio ends, a thousand nats for a score of 1 by
        default.

    Returns:
      The loss, and [B] metrics `rewards/*` (beta times log-ratio) and `logps/*`.

    Source:
      Paper: Zhang et al. 2024, arXiv:2410.02197.
      Code: general-preference/general-preference-model@a376d95 trains the preference model.
      Differences: none known. UNVERIFIED: whether 1/2 is taken from s; with win rates minus 1/2
      for s this is half of SPPO.
    """
    chosen = log_ratio(policy.chosen, ref.chosen)
    rejected = log_ratio(policy.rejected, ref.rejected)
    chosen_error = chosen - batch["score_chosen"] / beta
    rejected_error = rejected - batch["score_rejected"] / beta
    loss = 0.5 * (chosen_error**2 + rejected_error**2)
    return per_example(loss), pair_metrics(policy, beta * chosen, beta * rejected)
