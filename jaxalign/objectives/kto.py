"""Kahneman-Tversky optimization, and anchored preference optimization without pairs."""

from __future__ import annotations

import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.nn import log_sigmoid, relu

from ..core.numerics import weighted_mean
from ..core.objective import objective
from ..core.types import Array, Labeled, Loss, Metrics, Mismatched, per_example
from ._common import NonNegative, Positive, label_sign, labeled_metrics, log_ratio


@objective(
    Mismatched,
    source="Ethayarajh et al. 2024, arXiv:2402.01306, Eq. 8",
    columns=("label", "weight"),
    couples_examples=True,
)
def kto(
    policy: Mismatched,
    ref: Mismatched,
    batch: dict[str, Array],
    *,
    beta: Positive = 0.1,
    desirable_weight: NonNegative = 1.0,
    undesirable_weight: NonNegative = 1.0,
) -> tuple[Loss, Metrics]:
    """KTO: compares each response with a reference point; the loss saturates on both sides.

        r    = log pi(y|x)/pi_ref(y|x)
        z    = max(0, mean over the batch of log pi(y'|x)/pi_ref(y'|x)),  constant, nats
        loss = lam_D sigmoid(beta (z - r)) if desirable, lam_U sigmoid(beta (r - z)) if not

    averaged over examples; y' answers another prompt, so that z estimates KL(pi || pi_ref). The
    loss is lam/2 when the policy is the reference.

    Args:
      policy: response and mismatched response under the policy. Reads `logp`, [B].
      ref: response and mismatched response under the frozen reference. Reads `logp`, [B].
      batch: `label`, [B], 1 desirable, 0 undesirable; `weight`, [B], 0 for padding.
      beta: reward per nat of log-ratio; larger keeps the policy nearer the reference.
      desirable_weight: lam_D. The paper advises lam_D n_D / (lam_U n_U) between 1 and 3/2 (4/3 in
        early versions), with n_D desirable and n_U undesirable examples.
      undesirable_weight: lam_U.

    Returns:
      The loss, and [B] metrics `rewards/*`, `logps/response` and `kl` (z, nats).

    Source:
      Paper: Ethayarajh et al. 2024, arXiv:2402.01306, Eq. 8 (Eq. 7 in early versions).
      Code: ContextualAI/HALOs@4831988.
      Differences: z is the mean over the whole batch, whatever the number of microbatches and
      devices; TRL averages over per-device batches, and pairs a prompt with another's response
      within one. The paper divides a sum over m - 1 responses by m. HALOs leaves out responses with
      log-ratio 0; EasyDeL clips beta (r - z) at 30 nats, and with it the gradient.
    """
    log_ratios = log_ratio(policy.response, ref.response)
    mismatched = log_ratio(policy.mismatched, ref.mismatched)
    z = relu(stop_gradient(weighted_mean(mismatched, batch["weight"])))
    loss, margin = _saturating(
        beta * (log_ratios - z), batch["label"], desirable_weight, undesirable_weight
    )
    metrics = labeled_metrics(policy.response, beta * log_ratios, margin)
    return per_example(loss), metrics | {"kl": jnp.broadcast_to(z, margin.shape)}


@objective(Labeled, source="D'Oosterlinck et al. 2024, arXiv:2408.06266, Eq. 7", columns=("label",))
def apo_zero_unpaired(
    policy: Labeled,
    ref: Labeled,
    batch: dict[str, Array],
    *,
    beta: Positive = 0.1,
    desirable_weight: NonNegative = 1.0,
    undesirable_weight: NonNegative = 1.0,
) -> tuple[Loss, Metrics]:
    """APO-zero on labeled responses: KTO with the reference point fixed at 0.

        r    = log pi(y|x)/pi_ref(y|x)
        loss = lam_D sigmoid(-beta r) if desirable, lam_U sigmoid(beta r) if not

    averaged over examples. The loss is lam/2 when the policy is the reference.

    Args:
      policy: the response under the policy. Reads `logp`, [B].
      ref: the response under the frozen reference. Reads `logp`, [B].
      batch: `label`, [B], 1 desirable, 0 undesirable.
      beta: reward per nat of log-ratio; larger keeps the policy nearer the reference.
      desirable_weight: lam_D.
      undesirable_weight: lam_U.

    Returns:
      The loss, and [B] metrics `rewards/*` and `logps/response`.

    Source:
      Paper: D'Oosterlinck et al. 2024, arXiv:2408.06266, Eq. 7, its two halves separately.
      Code: TRL, `KTOTrainer` with loss_type `apo_zero_unpaired`.
      Differences: none.
    """
    reward = beta * log_ratio(policy.response, ref.response)
    loss, margin = _saturating(reward, batch["label"], desirable_weight, undesirable_weight)
    return per_example(loss), labeled_metrics(policy.response, reward, margin)


def _saturating(
    advantage: Array, label: Array, desirable: float | Array, undesirable: float | Array
) -> tuple[Array, Array]:
    """The loss, and its margin: the advantage times the label's sign, [B] each."""
    sign = label_sign(label)
    margin = sign * advantage
    lam = jnp.where(sign > 0, desirable, undesirable)
    # Not sigmoid(-margin): its gradient s(1 - s) loses its digits as s nears 1.
    return lam * jnp.exp(log_sigmoid(-margin)), margin
