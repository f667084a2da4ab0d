"""Token-level direct preference optimization, with a KL to the reference at every token."""

from __future__ import annotations

from jax.lax import stop_gradient
from jax.nn import log_sigmoid

from ..core import stats
from ..core.objective import objective
from ..core.types import Array, Loss, Metrics, Pairs, SequenceStats, per_example
from ._common import NonNegative, Positive, log_ratio, pair_metrics

NEEDS = (stats.logp, stats.forward_kl)


@objective(Pairs, source="Zeng et al. 2024, arXiv:2404.11999, TDPO1", needs=NEEDS)
def tdpo1(policy: Pairs, ref: Pairs, *, beta: Positive = 0.1) -> tuple[Loss, Metrics]:
    """TDPO1: DPO whose margin includes the KL from the reference at every token.

        K(y) = sum_t KL(pi_ref(.|x, y_<t) || pi(.|x, y_<t))
        loss = -log sigmoid(beta [h - (K(y_l) - K(y_w))])

    averaged over pairs; h is DPO's difference of log-ratios. The loss is log 2 when the policy is
    the reference.

    Args:
      policy: both responses under the policy. Reads `logp` and `token["forward_kl"]`.
      ref: both responses under the reference, which runs live. Reads `logp`, [B].
      beta: reward per nat; larger keeps the policy nearer the reference.

    Returns:
      The loss, and [B] metrics `rewards/*`, `logps/*`, `kl/chosen` and `kl/rejected` (K, nats).

    Source:
      Paper: Zeng et al. 2024, arXiv:2404.11999, method 1.
      Code: Vance0124/Token-level-Direct-Preference-Optimization.
      Differences: none.
    """
    chosen, rejected = (
        log_ratio(policy.chosen, ref.chosen),
        log_ratio(policy.rejected, ref.rejected),
    )
    k_chosen, k_rejected = _kl(policy.chosen), _kl(policy.rejected)
    loss = -log_sigmoid(beta * (chosen - rejected - (k_rejected - k_chosen)))
    return per_example(loss), _metrics(policy, beta * chosen, beta * rejected)


@objective(Pairs, source="Zeng et al. 2024, arXiv:2404.11999, TDPO2", needs=NEEDS)
def tdpo2(
    policy: Pairs, ref: Pairs, *, beta: Positive = 0.1, alpha: NonNegative = 0.5
) -> tuple[Loss, Metrics]:
    """TDPO2: TDPO1 without the gradient of the chosen response's KL.

        K(y) = sum_t KL(pi_ref(.|x, y_<t) || pi(.|x, y_<t))
        loss = -log sigmoid(beta [h - alpha (K(y_l) - sg(K(y_w)))])

    averaged over pairs; h is DPO's difference of log-ratios, sg stops the gradient. The loss is log
    2 when the policy is the reference, and equals DPO for alpha 0.

    Args:
      policy: both responses under the policy. Reads `logp` and `token["forward_kl"]`.
      ref: both responses under the reference, which runs live. Reads `logp`, [B].
      beta: reward per nat; larger keeps the policy nearer the reference.
      alpha: weight of the difference of KLs.

    Returns:
      The loss, and [B] metrics `rewards/*`, `logps/*`, `kl/chosen` and `kl/rejected` (K, nats).

    Source:
      Paper: Zeng et al. 2024, arXiv:2404.11999, method 2.
      Code: Vance0124/Token-level-Direct-Preference-Optimization.
      Differences: none.
    """
    chosen, rejected = (
        log_ratio(policy.chosen, ref.chosen),
        log_ratio(policy.rejected, ref.rejected),
    )
    k_chosen, k_rejected = stop_gradient(_kl(policy.chosen)), _kl(policy.rejected)
    loss = -log_sigmoid(beta * (chosen - rejected - alpha * (k_rejected - k_chosen)))
    return per_example(loss), _metrics(policy, beta * chosen, beta * rejected)


def _kl(y: SequenceStats) -> Array:
    return y.token["forward_kl"].sum(-1)


def _metrics(policy: Pairs, chosen: Array, rejected: Array) -> Metrics:
    kl = {"kl/chosen": _kl(policy.chosen), "kl/rejected": _kl(policy.rejected)}
    return pair_metrics(policy, chosen, rejected) | kl
