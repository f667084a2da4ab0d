"""SparsePO with token masks from the activations of the reference (MaPO)."""

from __future__ import annotations

from jax.nn import log_sigmoid

from ..core import stats
from ..core.objective import objective
from ..core.types import Array, Loss, Metrics, Pairs, SequenceStats, per_example
from ._common import Positive, pair_metrics


@objective(
    Pairs,
    source="Christopoulou et al. 2024, arXiv:2410.05102, MaPO",
    needs=(stats.logp, stats.forward_kl),
    layers=(stats.activation,),
)
def sparse_po(policy: Pairs, ref: Pairs, *, beta: Positive = 0.1) -> tuple[Loss, Metrics]:
    """SparsePO: TDPO1 with tokens weighted by the reference's activations; no new parameters.

        u(y) = sum_t m_t log (pi(y_t) / pi_ref(y_t)),    K(y) = sum_t m_t KL(pi_ref || pi)_t
        loss = -log sigmoid(beta [u(y_w) - u(y_l) - (K(y_l) - K(y_w))])

    averaged over pairs; m_t in [0, 1] is a constant: the mean activation of the reference after
    each layer where it predicts y_t, rescaled from 0 to 1 over the tokens of the response, averaged
    over layers. The loss is log 2 when the policy is the reference, and equals TDPO1 where every
    m_t is 1.

    Args:
      policy: both responses under the policy. Reads `token["logp"]` and `token["forward_kl"]`.
      ref: both responses under the reference, which runs live. Reads `token["logp"]` and
        `token["activation"]` (m).
      beta: reward per nat; larger keeps the policy nearer the reference.

    Returns:
      The loss, and [B] metrics `rewards/*` (beta u), `logps/*`, `kl/chosen` and `kl/rejected`
      (K, nats).

    Source:
      Paper: Christopoulou et al. 2024, arXiv:2410.05102, masks from activations. Its other masks
      are learned, and not included.
      Code: huawei-noah/HEBO, SparsePO, trainers/mapo_trainer.py, activation_mapping zn_rescale.
      Differences: the code averages four masks: inside the attention, the feed-forward, the
      residual stream and the logits; here the mask is the residual stream after each layer. The
      code's z-norm is left out: rescaling undoes it. Its mask of a response of one token is NaN;
      here a layer that is constant over the response counts as 1. It logs beta (u - K) as
      rewards. UNVERIFIED: which activations the paper means.
    """
    u_chosen, u_rejected = _u(policy.chosen, ref.chosen), _u(policy.rejected, ref.rejected)
    k_chosen, k_rejected = _kl(policy.chosen, ref.chosen), _kl(policy.rejected, ref.rejected)
    loss = -log_sigmoid(beta * (u_chosen - u_rejected - (k_rejected - k_chosen)))
    metrics = pair_metrics(policy, beta * u_chosen, beta * u_rejected)
    return per_example(loss), metrics | {"kl/chosen": k_chosen, "kl/rejected": k_rejected}


def _u(policy: SequenceStats, ref: SequenceStats) -> Array:
    return (ref.token["activation"] * (policy.token["logp"] - ref.token["logp"])).sum(-1)


def _kl(policy: SequenceStats, ref: SequenceStats) -> Array:
    return (ref.token["activation"] * policy.token["forward_kl"]).sum(-1)
