"""Anchored preference optimization, for chosen responses better or worse than the model's own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid

from ..core.numerics import expm1
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
    return per_example(_both_down(chosen, rejected)), pair_metrics(policy, chosen, rejected)


@jax.custom_jvp
def _both_down(chosen: Array, rejected: Array) -> Array:
    """APO-down of two rewards, s(w) + s(l - w)."""
    return _sigmoid(chosen) + _sigmoid(rejected - chosen)


@_both_down.defjvp
def _both_down_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    # The slope in w, s'(w) - s'(l - w), is 4 s'(w) s'(l - w) sinh(l/2) sinh(l/2 - w): near the
    # reference, both terms of the difference are 1/4.
    (w, l), (dw, dl) = primals, tangents  # noqa: E741
    push = jnp.exp(log_sigmoid(l - w) + log_sigmoid(w - l))
    size = expm1(-jnp.abs(l)) * expm1(-jnp.abs(l - 2 * w))
    size *= jnp.exp(-jnp.minimum(jnp.abs(w), jnp.abs(l - w)))
    size /= ((1 + jnp.exp(-jnp.abs(w))) * (1 + jnp.exp(-jnp.abs(l - w)))) ** 2
    return _both_down(w, l), jnp.sign(l) * jnp.sign(l - 2 * w) * size * dw + push * dl
