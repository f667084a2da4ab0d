"""Binary classifier optimisation, on labelled responses and on pairs."""

from __future__ import annotations

import flax.struct
import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.nn import log_sigmoid

from ..numerics import weighted_mean
from ..objective import objective
from ..types import Array, Labeled, Loss, Metrics, Pairs, per_example
from ._common import Decay, Positive, label_sign, labeled_metrics, log_ratio, pair_metrics


@flax.struct.dataclass
class ClassMeans:
    """Running mean reward of the undesirable and of the desirable responses, in this order."""

    mean: Array  # [2]  reward
    seen: Array  # [2]  1.0 once a batch has held the class, else 0.0

    @property
    def shift(self) -> Array:
        """The reward midway between the two classes; of the one class seen, or 0, before that."""
        return weighted_mean(self.mean, self.seen)


def no_means() -> ClassMeans:
    """The state before the first batch."""
    return ClassMeans(mean=jnp.zeros(2, jnp.float32), seen=jnp.zeros(2, jnp.float32))


def add_batch(
    state: ClassMeans, undesirable: Array, desirable: Array, weights: Array, decay: float | Array
) -> ClassMeans:
    """Move the mean of each class that the batch holds towards its mean in the batch.

    Args:
      state: before the batch.
      undesirable: rewards, [B]; no gradient flows from here.
      desirable: rewards, [B].
      weights: [2, B], in the order of the state; 0 where the example is not of the class.
      decay: of the moving average. The first batch of a class sets its mean.
    """
    rewards = stop_gradient(jnp.stack([undesirable, desirable]))
    batch = weighted_mean(rewards, weights)
    here = weights.sum(-1) > 0
    moved = jnp.where(state.seen > 0, decay * state.mean + (1 - decay) * batch, batch)
    return ClassMeans(
        mean=jnp.where(here, moved, state.mean), seen=jnp.where(here, 1.0, state.seen)
    )


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
    decay: Decay = 0.9,
) -> tuple[Loss, Metrics, ClassMeans]:
    """BCO, a binary classifier of desirable against undesirable whose logit is the reward.

        r     = beta log pi(y|x)/pi_ref(y|x)
        delta = (mean of r over desirable + mean of r over undesirable) / 2,  moving averages
        loss  = -log sigmoid(r - delta) if desirable, -log sigmoid(delta - r) if not

    averaged over examples; delta is a constant. It is log 2 when the policy is the reference.

    Args:
      policy: the response under the policy. Reads `logp`, [B].
      ref: the same under the frozen reference. Reads `logp`, [B].
      batch: `label`, [B], 1 desirable, 0 undesirable; `weight`, [B], 0 for padding.
      state: the running mean reward of each class.
      beta: reward per nat of log-ratio.
      decay: of the running means, per update.

    Returns:
      The loss, [B] metrics `rewards/*`, `logps/response` and `shift` (delta), and the next state.

    Source:
      Paper: Jung et al. 2024, arXiv:2404.04656; delta is the minimiser of its bound on DPO's loss.
      Code: TRL, pull requests 1524 and 1599, by the paper's author.
      Differences: delta is midway between the classes and an exponential average, as in the
      paper; TRL's is the average of all rewards ever seen. No prompt classifier (UDM), which the
      final version of the paper dropped.
    """
    reward = beta * log_ratio(policy.response, ref.response)
    sign = label_sign(batch["label"])
    margin = sign * (reward - state.shift)
    metrics = labeled_metrics(policy.response, reward, margin)
    metrics["shift"] = jnp.broadcast_to(state.shift, reward.shape)
    weights = jnp.stack([jnp.where(sign == s, batch["weight"], 0.0) for s in (-1, 1)])
    state = add_batch(state, reward, reward, weights, decay)
    return per_example(-log_sigmoid(margin)), metrics, state


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
    decay: Decay = 0.9,
) -> tuple[Loss, Metrics, ClassMeans]:
    """BCO on pairs, chosen desirable and rejected undesirable.

        r     = beta log pi(y|x)/pi_ref(y|x)
        delta = (mean of r(y_w) + mean of r(y_l)) / 2,  moving averages, constant
        loss  = -log sigmoid(r(y_w) - delta) - log sigmoid(delta - r(y_l))

    averaged over pairs. It is 2 log 2 when the policy is the reference.

    Args:
      policy: chosen and rejected under the policy. Reads `logp`, [B].
      ref: the same under the frozen reference. Reads `logp`, [B].
      batch: `weight`, [B], 0 for padding.
      state: the running mean reward of rejected and of chosen responses.
      beta: reward per nat of log-ratio.
      decay: of the running means, per update.

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
    state = add_batch(state, rejected, chosen, weights, decay)
    return per_example(loss), metrics, state
