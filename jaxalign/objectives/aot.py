"""Alignment by optimal transport, on pairs and on two sets of responses."""

from __future__ import annotations

import jax.numpy as jnp
from jax.nn import log_sigmoid

from ..core.objective import objective
from ..core.types import Array, Loss, Metrics, Pairs, per_example
from ._common import Positive, log_ratio, pair_metrics


def same_rank(values: Array, others: Array, weight: Array) -> Array:
    """For each example, the entry of `others` with the same rank as its entry of `values`, [B].

    Padding (weight 0) ranks after all examples on both sides, so padding is matched with padding.
    """
    order, other_order = (jnp.argsort(jnp.where(weight > 0, x, jnp.inf)) for x in (values, others))
    return others[other_order[jnp.argsort(order)]]


@objective(
    Pairs,
    source="Melnyk et al. 2024, arXiv:2406.05882",
    columns=("weight",),
    couples_examples=True,
)
def aot(
    policy: Pairs, ref: Pairs, batch: dict[str, Array], *, beta: Positive = 0.01
) -> tuple[Loss, Metrics]:
    """AOT: the policy's margins dominate the reference's margins as distributions.

        u    = log pi(y_w|x) - log pi(y_l|x),   v = log pi_ref(y_w|x) - log pi_ref(y_l|x)
        loss = -log sigmoid(beta (u_(i) - v_(i)))

    averaged over the ranks i of the batch: the i-th smallest u is compared with the i-th smallest
    v, which may come from another pair. The loss is log 2 when the policy is the reference.

    Args:
      policy: both responses under the policy. Reads `logp`, [B].
      ref: both responses under the frozen reference. Reads `logp`, [B].
      batch: `weight`, [B], 0 for padding.
      beta: reward per nat of log-ratio; larger keeps the policy nearer the reference.

    Returns:
      The loss, and [B] metrics `rewards/*` and `logps/*`. The loss of an example is the term of its
      u.

    Source:
      Paper: Melnyk et al. 2024, arXiv:2406.05882, its paired form with the logistic loss.
      Code: TRL's `aot` (in old versions `aot_pair` is the unpaired form).
      Differences: ranks are taken over the whole batch, whatever the number of microbatches and
      devices; TRL ranks on each device. TRL's label smoothing is left out.
    """
    margin = policy.chosen.logp - policy.rejected.logp
    ref_margin = ref.chosen.logp - ref.rejected.logp
    moved = ref_margin - same_rank(margin, ref_margin, batch["weight"])
    chosen = beta * log_ratio(policy.chosen, ref.chosen)
    rejected = beta * log_ratio(policy.rejected, ref.rejected)
    # Of a pair compared with itself, no sum of thousands of nats is subtracted from another.
    loss = -log_sigmoid(chosen - rejected + beta * moved)
    return per_example(loss), pair_metrics(policy, chosen, rejected)


@objective(
    Pairs,
    source="Melnyk et al. 2024, arXiv:2406.05882",
    columns=("weight",),
    couples_examples=True,
)
def aot_unpaired(
    policy: Pairs, ref: Pairs, batch: dict[str, Array], *, beta: Positive = 0.01
) -> tuple[Loss, Metrics]:
    """AOT without pairs: chosen rewards dominate rejected rewards as distributions.

        d(y) = log pi(y|x)/pi_ref(y|x)
        loss = -log sigmoid(beta (d(y_w)_(i) - d(y_l)_(i)))

    averaged over the ranks i of the batch: the i-th smallest d of all chosen responses is compared
    with the i-th smallest of all rejected ones. The loss is log 2 when the policy is the reference.

    Args:
      policy: both responses under the policy. Reads `logp`, [B].
      ref: both responses under the frozen reference. Reads `logp`, [B].
      batch: `weight`, [B], 0 for padding.
      beta: reward per nat of log-ratio; larger keeps the policy nearer the reference.

    Returns:
      The loss, and [B] metrics `rewards/*` and `logps/*`. The loss of an example is the term of its
      chosen response.

    Source:
      Paper: Melnyk et al. 2024, arXiv:2406.05882, its unpaired form with the logistic loss.
      Code: TRL's `aot_unpaired` (`aot_pair` in old versions).
      Differences: as for `aot`; here the two sets are the two sides of a batch of pairs, so they
      have the same size.
    """
    chosen = beta * log_ratio(policy.chosen, ref.chosen)
    rejected = beta * log_ratio(policy.rejected, ref.rejected)
    loss = -log_sigmoid(chosen - same_rank(chosen, rejected, batch["weight"]))
    return per_example(loss), pair_metrics(policy, chosen, rejected)
