"""Kahneman-Tversky optimisation."""

from __future__ import annotations

import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.nn import log_sigmoid, relu

from ..numerics import weighted_mean
from ..objective import objective
from ..types import Array, Loss, Metrics, Mismatched, per_example
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
    """KTO, each response against a reference point, with losses saturating on both sides.

        r    = log pi(y|x)/pi_ref(y|x)
        z    = max(0, mean over the batch of log pi(y'|x)/pi_ref(y'|x)),  constant, nats
        loss = lam_D sigmoid(beta (z - r)) if desirable, lam_U sigmoid(beta (r - z)) if not

    averaged over examples; y' answers another prompt, so that z estimates KL(pi || pi_ref). It is
    lam/2 when the policy is the reference.

    Args:
      policy: response and mismatched response under the policy. Reads `logp`, [B].
      ref: the same under the frozen reference. Reads `logp`, [B].
      batch: `label`, [B], 1 desirable, 0 undesirable; `weight`, [B], 0 for padding.
      beta: per nat; larger keeps the policy nearer the reference.
      desirable_weight: lam_D. lam_D n_D / (lam_U n_U) between 1 and 3/2 is advised, n_D and n_U
        being the numbers of desirable and undesirable examples.
      undesirable_weight: lam_U.

    Returns:
      The loss, and [B] metrics `rewards/*`, `logps/response` and `kl` (z, nats).

    Source:
      Paper: Ethayarajh et al. 2024, arXiv:2402.01306, Eq. 8 (Eq. 7 in early versions).
      Code: ContextualAI/HALOs@4831988.
      Differences: z is the mean over the whole batch, whatever the number of microbatches and
      devices; TRL clamps the mean of per-device batches. HALOs leaves out pairs with log-ratio 0.
    """
    log_ratios = log_ratio(policy.response, ref.response)
    mismatched = log_ratio(policy.mismatched, ref.mismatched)
    z = relu(stop_gradient(weighted_mean(mismatched, batch["weight"])))
    sign = label_sign(batch["label"])
    lam = jnp.where(sign > 0, desirable_weight, undesirable_weight)
    margin = beta * sign * (log_ratios - z)
    # Not sigmoid(-margin): its gradient s(1 - s) loses its digits as s nears 1.
    loss = lam * jnp.exp(log_sigmoid(-margin))
    metrics = labeled_metrics(policy.response, beta * log_ratios, margin)
    return per_example(loss), metrics | {"kl": jnp.broadcast_to(z, margin.shape)}
