"""Anchored preference optimization, for chosen responses better or worse than the model's own."""

from __future__ import annotations

import jax.numpy as jnp
from jax.nn import log_sigmoid

from ..core.objective import objective
from ..core.types import Array, Loss, Metrics, Pairs, per_example
from ._common import Positive, log_ratio, pair_metrics


def _sigmoid(x: Array) -> Array:
    """The sigmoid; the gradient s(1 - s) of jax.nn.sigmoid loses its digits as s nears 1."""
    return jnp.exp(log_sigmoid(x))


@objective(Pairs, source="D'Oosterlinck et al. 2024, arXiv:2408.06266, Eq. 7")
def apo_zero(policy: Pairs, ref: Pairs, *, beta: Positive = 0.1) -> tuple[Loss, Metrics]:
    """APO-zero: raises chosen and lowers rejected, if chosen is better than the model's answers.

        r(y) = beta log pi(y|x)/pi_ref(y|x)
        loss = (1 - sigmoid(r(y_w))) + sigmoid(r(y_l))

    averaged over pairs. The loss is 1 when the policy is the reference; each half saturates on its
    own.

    Args:
      policy: both responses under the policy. Reads `logp`, [B].
      ref: both responses under the frozen reference. Reads `logp`, [B].
      beta: reward per nat of log-ratio; larger keeps the policy nearer the reference.

    Returns:
      The loss, and [B] metrics `rewards/*` and `logps/*`.

    Source:
      Paper: D'Oosterlinck et al. 2024, arXiv:2408.06266, Eq. 7.
      Differences: 1 is added, as in TRL's `apo_zero`, so that the loss is not negative.
    """
    chosen = beta * log_ratio(policy.chosen, ref.chosen)
    rejected = beta * log_ratio(policy.rejected, ref.rejected)
    loss = _sigmoid(-chosen) + _sigmoid(rejected)
    return per_example(loss), pair_metrics(policy, chosen, rejected)


@objective(Pairs, source="D'Oosterlinck et al. 2024, arXiv:2408.06266, Eq. 8")
def apo_down(policy: Pairs, ref: Pairs, *, beta: Positive = 0.1) -> tuple[Loss, Metrics]:
    """APO-down: lowers both, rejected more, if chosen is worse than the model's answers.

        r(y) = beta log pi(y|x)/pi_ref(y|x)
        loss = sigmoid(r(y_w)) + (1 - sigmoid(r(y_w) - r(y_l)))

    averaged over pairs. The loss is 1 when the policy is the reference. There the gradient with
    respect to the chosen response is 0; it lowers that response once the margin has grown.

    Args:
      policy: both responses under the policy. Reads `logp`, [B].
      ref: both responses under the frozen reference. Reads `logp`, [B].
      beta: reward per nat of log-ratio; larger keeps the policy nearer the reference.

    Returns:
      The loss, and [B] metrics `rewards/*` and `logps/*`.

    Source:
      Paper: D'Oosterlinck et al. 2024, arXiv:2408.06266, Eq. 8.
      Differences: 1 is added, as in TRL's `apo_down`, so that the loss is not negative.
    """
    chosen = beta * log_ratio(policy.chosen, ref.chosen)
    rejected = beta * log_ratio(policy.rejected, ref.rejected)
    loss = _sigmoid(chosen) + _sigmoid(rejected - chosen)
    return per_example(loss), pair_metrics(policy, chosen, rejected)
