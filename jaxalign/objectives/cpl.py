"""Contrastive preference learning."""

from __future__ import annotations

from jax.nn import softplus

from ..core.objective import objective
from ..core.types import Loss, Metrics, Pairs, per_example
from ._common import NonNegative, Positive, log_ratio, pair_metrics


@objective(Pairs, source="Hejna et al. 2023, arXiv:2310.13639")
def cpl(policy: Pairs, *, alpha: Positive = 0.1, lam: NonNegative = 0.5) -> tuple[Loss, Metrics]:
    """CPL: logistic regression on regret, with the log-probability as the advantage.

        a(y) = alpha log pi(y|x)
        loss = -log(e^a(y_w) / (e^a(y_w) + e^(lam a(y_l))))

    averaged over pairs; there is no reference. lam = 1 is DPO with a uniform reference.

    Args:
      policy: both responses under the policy. Reads `logp`, [B].
      alpha: advantage per nat.
      lam: bias of the contrast; below 1 the rejected response is pushed down less, and the loss
        falls as both become likelier, so that the policy stays close to the data.

    Returns:
      The loss, and [B] metrics `rewards/*` (advantages, without lam) and `logps/*`.

    Source:
      Paper: Hejna et al. 2023, arXiv:2310.13639, without discount.
      Code: jhejna/cpl@b333667.
      Differences: none. The authors first train a separate stage on the likelihood of all
      responses. Sums of log-probabilities favor short responses.
    """
    chosen, rejected = alpha * policy.chosen.logp, alpha * policy.rejected.logp
    return per_example(softplus(lam * rejected - chosen)), pair_metrics(policy, chosen, rejected)


@objective(Pairs, source="Hejna et al. 2023, arXiv:2310.13639")
def cpl_kl(
    policy: Pairs, ref: Pairs, *, alpha: Positive = 0.1, lam: NonNegative = 0.5
) -> tuple[Loss, Metrics]:
    """CPL with a KL to a reference: the advantage is the log-ratio.

        a(y) = alpha log pi(y|x)/pi_ref(y|x)
        loss = -log(e^a(y_w) / (e^a(y_w) + e^(lam a(y_l))))

    averaged over pairs. lam = 1 is DPO. The loss is log 2 when the policy is the reference.

    Args:
      policy: both responses under the policy. Reads `logp`, [B].
      ref: both responses under the frozen reference. Reads `logp`, [B].
      alpha: advantage per nat of log-ratio.
      lam: bias of the contrast; below 1 the rejected response is pushed down less.

    Returns:
      The loss, and [B] metrics `rewards/*` (advantages, without lam) and `logps/*`.

    Source:
      Paper: Hejna et al. 2023, arXiv:2310.13639.
      Differences: as for `cpl`. UNVERIFIED: its lam with a reference.
    """
    chosen = alpha * log_ratio(policy.chosen, ref.chosen)
    rejected = alpha * log_ratio(policy.rejected, ref.rejected)
    return per_example(softplus(lam * rejected - chosen)), pair_metrics(policy, chosen, rejected)
