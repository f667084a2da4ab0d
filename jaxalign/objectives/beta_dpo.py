"""DPO with a beta for each batch, without the pairs of unusual gap (beta-DPO)."""

from __future__ import annotations

from typing import Annotated

import annotated_types
import flax.struct
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.nn import log_sigmoid

from ..core.numerics import weighted_mean
from ..core.objective import objective
from ..core.types import Array, Loss, Metrics, Pairs, per_example
from ._common import Decay, NonNegative, Positive, log_ratio, pair_metrics

LeftOut = Annotated[float, annotated_types.Interval(ge=0, lt=1)]
LOWEST = float(jnp.finfo(jnp.float32).min)


@flax.struct.dataclass
class Gaps:
    """Running statistics of the gaps h, nats, and the selection of the last update."""

    mean: Array  # []  running mean
    std: Array  # []   running standard deviation
    lead: Array  # []  mean gap of the pairs kept, minus the running mean
    cutoff: Array  # []  score above which a pair is kept
    share: Array  # []  fraction of the batch that is kept


def no_gaps() -> Gaps:
    """The state before the first batch."""
    zero = jnp.zeros((), jnp.float32)
    return Gaps(mean=zero, std=zero, lead=zero, cutoff=jnp.float32(LOWEST), share=jnp.float32(1.0))


@objective(
    Pairs,
    source="Wu et al. 2024, beta-DPO, arXiv:2407.08639",
    columns=("weight",),
    couples_examples=True,
    init_state=no_gaps,
)
def beta_dpo(
    policy: Pairs,
    ref: Pairs,
    batch: dict[str, Array],
    state: Gaps,
    key: Array,
    *,
    beta: Positive = 0.1,
    alpha: NonNegative = 0.6,
    rho: LeftOut = 0.2,
    decay: Decay = 0.9,
) -> tuple[Loss, Metrics, Gaps]:
    """beta-DPO: DPO with a larger beta for batches with larger gaps, and without outliers.

        h      = log pi(y_w|x)/pi_ref(y_w|x) - log pi(y_l|x)/pi_ref(y_l|x)
        beta_B = max(1e-3, beta (1 + alpha (mean of h over the pairs kept - M))),  constant
        loss   = -log sigmoid(beta_B h)

    averaged over the pairs kept: 1 - rho of the batch, drawn without replacement with weights
    exp(-(h - M)^2 / (2 S^2)). M and S are running averages of the mean and standard deviation of h
    over a batch, including the current one. The loss is log 2 when the policy is the reference.

    Args:
      policy: both responses under the policy. Reads `logp`, [B].
      ref: both responses under the frozen reference. Reads `logp`, [B].
      batch: `weight`, [B], 0 for padding.
      state: M, S and the selection of the last update.
      key: random keys, [B], one per pair and update.
      beta: reward per nat of log-ratio if the mean gap is M.
      alpha: relative change of beta per nat of gap.
      rho: fraction of a batch that is left out.
      decay: decay of the running averages per update.

    Returns:
      The loss, [B] metrics `rewards/*` (with beta), `logps/*`, `beta` (beta_B) and `kept` (0 or
      1), and the next state.

    Source:
      Paper: Wu et al. 2024, arXiv:2407.08639.
      Code: junkangwu/beta-DPO@6f3abb8; M and S start at 0 there, as here, so after the first batch
      they are a tenth of its values.
      Differences: all statistics are over the whole batch, whatever the number of microbatches; the
      code computes them for each microbatch. The code updates M and S in evaluation too. Here
      evaluation changes no state, and keeps the pairs that the last update would have kept.
    """
    chosen = log_ratio(policy.chosen, ref.chosen)
    rejected = log_ratio(policy.rejected, ref.rejected)
    gap, noise = chosen - rejected, jax.vmap(jax.random.gumbel)(key)
    beta_b = jnp.maximum(1e-3, beta * (1.0 + alpha * state.lead))
    kept = _score(gap, noise, state.mean, state.std) >= state.cutoff
    loss = jnp.where(kept, -log_sigmoid(beta_b * gap) / state.share, 0.0)
    metrics = pair_metrics(policy, beta * chosen, beta * rejected)
    metrics |= {"beta": jnp.broadcast_to(beta_b, gap.shape), "kept": kept.astype(jnp.float32)}
    state = add_batch(state, stop_gradient(gap), noise, batch["weight"], rho, decay)
    return per_example(loss), metrics, state


def add_batch(
    state: Gaps, gap: Array, noise: Array, weight: Array, rho: float | Array, decay: float | Array
) -> Gaps:
    """Update the running averages, then keep the pairs with the highest scores."""
    n = weight.sum()
    center = weighted_mean(gap, weight)
    variance = weighted_mean((gap - center) ** 2, weight) * n / jnp.maximum(n - 1.0, 1.0)
    mean = decay * state.mean + (1 - decay) * center
    std = decay * state.std + (1 - decay) * jnp.sqrt(variance)
    score = jnp.where(weight > 0, _score(gap, noise, mean, std), LOWEST)
    # 1e-3: a whole number of pairs may round to slightly less in float32.
    count = jnp.clip(jnp.floor((1 - rho) * n + 1e-3), 1.0, jnp.maximum(n, 1.0))
    ordered = jnp.append(jnp.sort(score, descending=True), LOWEST)
    last = count.astype(jnp.int32)
    # Midway to the first pair left out, so that rounding moves no pair across.
    cutoff = ordered[last - 1] / 2 + ordered[last] / 2
    lead = weighted_mean(gap, jnp.where(score >= cutoff, weight, 0.0)) - mean
    share = count / jnp.maximum(n, 1.0)
    return Gaps(mean=mean, std=std, lead=lead, cutoff=cutoff, share=share)


def _score(gap: Array, noise: Array, mean: Array, std: Array) -> Array:
    """Log-weight plus Gumbel noise, [B]: the k highest are k draws without replacement."""
    return noise - ((gap - mean) / jnp.maximum(std, 1e-6)) ** 2 / 2
