"""Hinge losses on pairs, with a reference (RSO) and without (SLiC-HF)."""

from __future__ import annotations

from jax.nn import relu

from ..core.objective import objective
from ..core.types import Loss, Metrics, Pairs, per_example
from ._common import NonNegative, Positive, log_ratio, pair_metrics


@objective(Pairs, source="Liu et al. 2023, RSO, arXiv:2309.06657")
def hinge(policy: Pairs, ref: Pairs, *, beta: Positive = 0.05) -> tuple[Loss, Metrics]:
    """RSO's hinge-norm: a support vector machine on the difference of two log-ratios.

        h    = log pi(y_w|x)/pi_ref(y_w|x) - log pi(y_l|x)/pi_ref(y_l|x)
        loss = max(0, 1 - beta h)

    averaged over pairs. The loss is 1 when the policy is the reference; a pair whose margin has
    reached 1/beta nats has no gradient.

    Args:
      policy: both responses under the policy. Reads `logp`, [B].
      ref: both responses under the frozen reference. Reads `logp`, [B].
      beta: reward per nat of log-ratio, the paper's gamma.

    Returns:
      The loss, and [B] metrics `rewards/*` and `logps/*`.

    Source:
      Paper: Liu et al. 2023, arXiv:2309.06657, hinge-norm.
      Differences: none. TRL calls `hinge` SLiC, which has no reference: see `slic`.
    """
    chosen = beta * log_ratio(policy.chosen, ref.chosen)
    rejected = beta * log_ratio(policy.rejected, ref.rejected)
    return per_example(relu(1 - (chosen - rejected))), pair_metrics(policy, chosen, rejected)


@objective(Pairs, source="Zhao et al. 2023, SLiC-HF, arXiv:2305.10425, Eq. 1")
def slic(
    policy: Pairs, *, delta: NonNegative = 1.0, lam: NonNegative = 0.1
) -> tuple[Loss, Metrics]:
    """SLiC-HF: a hinge on the difference of two log-probabilities, plus likelihood; no reference.

        loss = max(0, delta - log pi(y_w|x) + log pi(y_l|x)) - lam log pi(y_w|x)

    averaged over pairs. A pair whose margin has reached delta only has the likelihood term.

    Args:
      policy: both responses under the policy. Reads `logp`, [B].
      delta: target margin, nats.
      lam: weight of the likelihood of the chosen response, per nat; 0 leaves the hinge, which is
        RSO's without a reference, divided by its gamma = 1/delta.

    Returns:
      The loss, and [B] metrics `rewards/*` (log-probabilities, nats) and `logps/*`.

    Source:
      Paper: Zhao et al. 2023, arXiv:2305.10425, Eq. 1, known from secondary sources.
      Code: ContextualAI/HALOs@4831988, the source of the defaults.
      Differences: the paper takes the likelihood of a supervised target; here the target is y_w.
      HALOs adds its token-level likelihood to its [B] hinge, which broadcasts the two.
    """
    chosen, rejected = policy.chosen.logp, policy.rejected.logp
    loss = relu(delta - (chosen - rejected)) - lam * chosen
    return per_example(loss), pair_metrics(policy, chosen, rejected)
