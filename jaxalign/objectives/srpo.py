"""Self-improving robust preference optimization: a policy together with its own reviser."""

from __future__ import annotations

from ..core.objective import objective
from ..core.types import Loss, Metrics, Revised, per_example
from ._common import Fraction, Positive, log_ratio, pair_metrics


@objective(Revised, source="Choi et al. 2024, arXiv:2406.01660")
def srpo(
    policy: Revised, ref: Revised, *, beta: Positive = 0.1, alpha: Fraction = 0.5
) -> tuple[Loss, Metrics]:
    """SRPO: least squares for a policy that is robust to the best revision of its answers.

        b(i)   = log pi(y_i|x)/pi_ref(y_i|x),   a(i|j) = log pi(y_i|x, y_j)/pi_ref(y_i|x, y_j)
        revise = (1/2 - beta [a(w|l) - a(l|l)])^2 + (1/2 - beta [a(w|w) - a(l|w)])^2
        answer = (1/2 - beta/2 [b(w) - b(l) + a(w|l) - a(l|w)])^2
        loss   = (1 - alpha) answer + alpha revise

    averaged over examples. The loss is (1 + alpha)/4 when the policy is the reference. The same
    network answers x and revises the answer y_j to x.

    Args:
      policy: both responses and four revisions under the policy. Reads `logp`, [B].
      ref: both responses and four revisions under the frozen reference. Reads `logp`, [B].
      beta: reward per nat of log-ratio; larger keeps policy and reviser nearer the reference.
      alpha: share of the reviser's loss.

    Returns:
      The loss, and [B] metrics `rewards/*`, `logps/*`, `rewards/revision_margins` (of the better
      revision over the worse one, averaged over the two answers that are revised).

    Source:
      Paper: Choi et al. 2024, arXiv:2406.01660.
      Differences: derived from the paper's objective, min over pi, max over the reviser, of
      P(revision beats answer) with KL penalties of weight beta, whose solutions make every residual
      0. UNVERIFIED: the paper's own scale, and its alpha. The wording of the reviser's prompt is
      ours.
    """
    names = policy.LAYOUT.responses
    w, l, wl, lw, ll, ww = (log_ratio(getattr(policy, n), getattr(ref, n)) for n in names)  # noqa: E741
    after_l, after_w = beta * (wl - ll), beta * (ww - lw)
    revise = (0.5 - after_l) ** 2 + (0.5 - after_w) ** 2
    answer = (0.5 - beta / 2 * (w - l + wl - lw)) ** 2
    metrics = pair_metrics(policy, beta * w, beta * l)
    metrics["rewards/revision_margins"] = (after_l + after_w) / 2
    return per_example((1 - alpha) * answer + alpha * revise), metrics
