"""DPO on self-annotated pairs, with labels smoothed where the margin is small (SPA)."""

from __future__ import annotations

from typing import Annotated

import annotated_types
import flax.struct
import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.nn import log_sigmoid

from ..core.numerics import weighted_mean
from ..core.objective import objective
from ..core.types import Array, Loss, Metrics, Pairs, per_example
from ._common import FlipRate, Positive, log_ratio, pair_metrics

WINDOW, QUANTILE = 50, 0.1
Updates = Annotated[int, annotated_types.Ge(0)]


@flax.struct.dataclass
class Margins:
    """Mean margins of the last updates."""

    recent: Array  # [50]  oldest first, the last `updates` of them filled
    updates: Array  # []    updates made so far

    @property
    def threshold(self) -> Array:
        """The mean of the two entries above the lowest tenth; -inf before the first update."""
        n = jnp.minimum(self.updates, WINDOW)
        filled = jnp.arange(WINDOW, dtype=jnp.float32) >= WINDOW - n
        ordered = jnp.sort(jnp.where(filled, self.recent, jnp.inf))
        at = jnp.floor(QUANTILE * n) + jnp.arange(2, dtype=jnp.float32)
        both = ordered[jnp.clip(at, 0.0, jnp.maximum(n - 1, 0.0)).astype(jnp.int32)]
        return jnp.where(n > 0, both.mean(), -jnp.inf)


def no_margins() -> Margins:
    """The state before the first batch."""
    return Margins(recent=jnp.zeros(WINDOW, jnp.float32), updates=jnp.zeros((), jnp.float32))


@objective(
    Pairs,
    source="Kim et al. 2024, SPA, arXiv:2406.04412",
    columns=("weight",),
    couples_examples=True,
    init_state=no_margins,
)
def spa(
    policy: Pairs,
    ref: Pairs,
    batch: dict[str, Array],
    state: Margins,
    *,
    beta: Positive = 0.1,
    label_smoothing: FlipRate = 0.1,
    warmup: Updates = 0,
) -> tuple[Loss, Metrics, Margins]:
    """SPA's noise-aware loss: DPO with labels smoothed where the policy is least sure of them.

        h    = log pi(y_w|x)/pi_ref(y_w|x) - log pi(y_l|x)/pi_ref(y_l|x)
        eps  = label_smoothing if beta h <= tau, else 0
        loss = -(1 - eps) log sigmoid(beta h) - eps log sigmoid(-beta h)

    averaged over pairs. tau is the lowest tenth of the mean margins of the last 50 updates,
    including the current one. The loss is log 2 when the policy is the reference.

    Args:
      policy: both responses under the policy. Reads `logp`, [B].
      ref: both responses under the reference, the policy that sampled the pairs.
      batch: `weight`, [B], 0 for padding.
      state: the mean margins of the last 50 updates.
      beta: reward per nat of log-ratio.
      label_smoothing: eps of the doubted pairs.
      warmup: number of updates before any label is doubted; a fifth of the training in the paper.

    Returns:
      The loss, [B] metrics `rewards/*`, `logps/*` and `doubted` (1 where eps is not 0), and the
      next state.

    Source:
      Paper: Kim et al. 2024, arXiv:2406.04412.
      Code: kingdy2002/SPA@38553eb, with its default, margins of the policy itself.
      Differences: the paper takes margins of logits extrapolated away from the reference's. In the
      first 50 updates tau uses the updates made so far. As in the code, margins of pairs are
      compared with a quantile of batch means, which vary less.
    """
    chosen = beta * log_ratio(policy.chosen, ref.chosen)
    rejected = beta * log_ratio(policy.rejected, ref.rejected)
    margin = chosen - rejected
    doubted = (margin <= state.threshold) & (state.updates > warmup)
    eps = jnp.where(doubted, label_smoothing, 0.0)
    loss = -(1 - eps) * log_sigmoid(margin) - eps * log_sigmoid(-margin)
    metrics = pair_metrics(policy, chosen, rejected) | {"doubted": doubted.astype(jnp.float32)}
    mean = weighted_mean(stop_gradient(margin), batch["weight"])
    recent = jnp.concatenate([state.recent[1:], mean[None]])
    return per_example(loss), metrics, Margins(recent=recent, updates=state.updates + 1.0)
