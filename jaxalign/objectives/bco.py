"""Binary classifier optimization, on labeled responses and on pairs."""

from __future__ import annotations

from typing import Literal

import flax.struct
import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.nn import log_sigmoid

from ..core.numerics import weighted_mean
from ..core.objective import objective
from ..core.types import Array, Labeled, Loss, Mean, Metrics, Pairs, per_example
from ._common import Decay, Positive, between, label_sign, labeled_metrics, log_ratio, pair_metrics

Center = Literal["class_balanced", "pooled"]
Average = Literal["ema", "cumulative"]


@flax.struct.dataclass
class ClassMeans:
    """Running mean rewards of undesirable and desirable responses, in this order."""

    mean: Array  # [2]  reward
    seen: Array  # [2]  examples of the class so far

    @property
    def shift(self) -> Array:
        """The midpoint of the two means; the one mean, or 0, until both classes are seen."""
        return weighted_mean(self.mean, (self.seen > 0).astype(self.mean.dtype))


def no_means() -> ClassMeans:
    """The state before the first batch."""
    return ClassMeans(mean=jnp.zeros(2, jnp.float32), seen=jnp.zeros(2, jnp.float32))


def add_batch(
    state: ClassMeans,
    undesirable: Array,
    desirable: Array,
    weights: Array,
    average: Average,
    decay: float | Array,
) -> ClassMeans:
    """Move the mean of each class that the batch holds towards its mean in the batch.

    Args:
      state: the means before the batch.
      undesirable: the rewards for the undesirable mean, [B]; no gradient flows through them.
      desirable: the rewards for the desirable mean, [B]; no gradient flows through them.
      weights: the weights of the examples in each mean, [2, B]; 0 outside the class.
      average: the kind of mean: `cumulative`, over all examples so far; `ema`, with decaying
        weights.
      decay: decay of the moving average per update. The first batch of a class sets its mean.
    """
    rewards = stop_gradient(jnp.stack([undesirable, desirable]))
    batch, count = weighted_mean(rewards, weights), weights.sum(-1)
    seen = state.seen + count
    if average == "cumulative":
        rate = count / jnp.maximum(seen, 1.0)
    else:
        rate = jnp.where(count > 0, jnp.where(state.seen > 0, 1 - decay, 1.0), 0.0)
    return ClassMeans(mean=(1 - rate) * state.mean + rate * batch, seen=seen)


@objective(
    Labeled,
    source="Jung et al. 2024, arXiv:2404.04656",
    columns=("label", "weight"),
    couples_examples=True,
    init_state=no_means,
)
def bco(
    policy: Labeled,
    ref: Labeled,
    batch: dict[str, Array],
    state: ClassMeans,
    *,
    beta: Positive = 0.1,
    center: Center = "class_balanced",
    average: Average = "ema",
    decay: Decay = 0.9,
) -> tuple[Loss, Metrics, ClassMeans]:
    """BCO: a binary classifier of desirable and undesirable responses whose logit is the reward.

        r     = beta log pi(y|x)/pi_ref(y|x)
        delta = (mean of r over desirable + mean of r over undesirable) / 2,  moving averages
        loss  = -log sigmoid(r - delta) if desirable, -log sigmoid(delta - r) if not

    averaged over examples; delta is a constant. The loss is log 2 when the policy is the reference.

    Args:
      policy: the response under the policy. Reads `logp`, [B].
      ref: the response under the frozen reference. Reads `logp`, [B].
      batch: `label`, [B], 1 desirable, 0 undesirable; `weight`, [B], 0 for padding.
      state: the running mean reward of each class.
      beta: reward per nat of log-ratio.
      center: estimate of delta: `class_balanced` as above; `pooled`, the mean of all rewards.
      average: kind of running mean: `ema` weighs older batches less; `cumulative` weighs all
        examples the same.
      decay: decay of the running means per update, if `average` is `ema`.

    Returns:
      The loss, [B] metrics `rewards/*`, `logps/response` and `shift` (delta), and the next state.

    Source:
      Paper: Jung et al. 2024, arXiv:2404.04656; delta is the minimizer of its bound on DPO's loss.
      Code: TRL, pull requests 1524 and 1599, by the paper's author.
      Differences: delta is midway between the classes and an exponential average, as in the paper
      (UNVERIFIED: its decay); TRL's `BCOTrainer` is `pooled` and `cumulative`.
    """
    margin, metrics, state = _classify(policy, ref, batch, state, beta, center, average, decay)
    return per_example(-log_sigmoid(margin)), metrics, state


@objective(
    Labeled,
    source="Jung et al. 2024, arXiv:2404.04656v1",
    columns=("label", "density_ratio", "weight"),
    check=between("density_ratio", 0, float("inf")),
    couples_examples=True,
    init_state=no_means,
)
def bco_udm(
    policy: Labeled,
    ref: Labeled,
    batch: dict[str, Array],
    state: ClassMeans,
    *,
    beta: Positive = 0.1,
    center: Center = "class_balanced",
    average: Average = "ema",
    decay: Decay = 0.9,
    denominator: Literal["examples", "weights"] = "examples",
) -> tuple[Loss, Metrics, ClassMeans]:
    """BCO with underlying distribution matching, if the prompts of the two labels differ.

        omega = density ratio of the prompt, clipped to [1/2, 10], if undesirable; 1 if desirable
        loss  = -log sigmoid(r - delta) if desirable, -omega log sigmoid(delta - r) if not

    averaged over examples, with r and delta of `bco`. omega weighs the undesirable examples so that
    their prompts match the prompts of the desirable ones. The loss is omega log 2 when the policy
    is the reference.

    Args:
      policy: the response under the policy. Reads `logp`, [B].
      ref: the response under the frozen reference. Reads `logp`, [B].
      batch: `label`, [B], 1 desirable, 0 undesirable; `weight`, [B], 0 for padding;
        `density_ratio`, [B], how many times likelier the prompt is among the desirable examples,
        p/(1 - p) of a classifier with balanced classes; ignored for desirable examples.
      state: the running mean reward of each class, without omega.
      beta: reward per nat of log-ratio.
      center: as for `bco`.
      average: as for `bco`.
      decay: decay of the running means per update, if `average` is `ema`.
      denominator: divisor of the summed loss: `examples`, their number; `weights`, the sum of omega
        over all examples.

    Returns:
      The loss, [B] metrics `rewards/*`, `logps/response` and `shift` (delta), and the next state.

    Source:
      Paper: Jung et al. 2024, arXiv:2404.04656v1; the final version leaves omega out.
      Code: TRL, `BCOTrainer`, which is `pooled`, `cumulative` and `examples`.
      Differences: as for `bco`. EasyDeL divides by `weights`. UNVERIFIED: whether the paper's delta
      includes omega.
    """
    margin, metrics, state = _classify(policy, ref, batch, state, beta, center, average, decay)
    omega = jnp.where(batch["label"] > 0.5, 1.0, jnp.clip(batch["density_ratio"], 0.5, 10.0))
    loss = -omega * log_sigmoid(margin)
    count = jnp.ones_like(loss) if denominator == "examples" else omega
    return Loss((Mean(loss, count),)), metrics, state


def _classify(
    policy: Labeled,
    ref: Labeled,
    batch: dict[str, Array],
    state: ClassMeans,
    beta: float | Array,
    center: Center,
    average: Average,
    decay: float | Array,
) -> tuple[Array, Metrics, ClassMeans]:
    """The logit with the sign of its label, [B], the metrics and the next state."""
    reward = beta * log_ratio(policy.response, ref.response)
    sign = label_sign(batch["label"])
    margin = sign * (reward - state.shift)
    metrics = labeled_metrics(policy.response, reward, margin)
    metrics["shift"] = jnp.broadcast_to(state.shift, reward.shape)
    # `pooled`: one class holds every example.
    sides = sign if center == "class_balanced" else jnp.ones_like(sign)
    weights = jnp.stack([jnp.where(sides == s, batch["weight"], 0.0) for s in (-1, 1)])
    return margin, metrics, add_batch(state, reward, reward, weights, average, decay)


@objective(
    Pairs,
    source="Jung et al. 2024, arXiv:2404.04656",
    columns=("weight",),
    couples_examples=True,
    init_state=no_means,
)
def bco_pair(
    policy: Pairs,
    ref: Pairs,
    batch: dict[str, Array],
    state: ClassMeans,
    *,
    beta: Positive = 0.1,
    average: Average = "ema",
    decay: Decay = 0.9,
) -> tuple[Loss, Metrics, ClassMeans]:
    """BCO on pairs: chosen responses are desirable, rejected ones undesirable.

        r     = beta log pi(y|x)/pi_ref(y|x)
        delta = (mean of r(y_w) + mean of r(y_l)) / 2,  moving averages, constant
        loss  = -log sigmoid(r(y_w) - delta) - log sigmoid(delta - r(y_l))

    averaged over pairs. The loss is 2 log 2 when the policy is the reference.

    Args:
      policy: both responses under the policy. Reads `logp`, [B].
      ref: both responses under the frozen reference. Reads `logp`, [B].
      batch: `weight`, [B], 0 for padding.
      state: the running mean rewards of rejected and chosen responses.
      beta: reward per nat of log-ratio.
      average: as for `bco`.
      decay: decay of the running means per update, if `average` is `ema`.

    Returns:
      The loss, [B] metrics `rewards/*`, `logps/*` and `shift` (delta), and the next state.

    Source:
      Paper: Jung et al. 2024, arXiv:2404.04656.
      Differences: as for `bco`. TRL 0.29 and later have no shift in their `bco_pair`.
    """
    chosen = beta * log_ratio(policy.chosen, ref.chosen)
    rejected = beta * log_ratio(policy.rejected, ref.rejected)
    loss = -log_sigmoid(chosen - state.shift) - log_sigmoid(state.shift - rejected)
    metrics = pair_metrics(policy, chosen, rejected)
    metrics["shift"] = jnp.broadcast_to(state.shift, chosen.shape)
    weights = jnp.stack([batch["weight"], batch["weight"]])
    state = add_batch(state, rejected, chosen, weights, average, decay)
    return per_example(loss), metrics, state
