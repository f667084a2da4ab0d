"""Implicit process rewards: an outcome classifier that also rewards each step."""

from __future__ import annotations

import jax.numpy as jnp
from jax.nn import softplus

from ..core.objective import objective
from ..core.types import Array, Labeled, Loss, Metrics, SequenceStats, per_example
from ._common import Positive, label_sign, labeled_metrics, log_ratio


@objective(Labeled, source="Yuan et al. 2024, arXiv:2412.01981", columns=("label",))
def implicit_prm(
    policy: Labeled, ref: Labeled, batch: dict[str, Array], *, beta: Positive = 0.05
) -> tuple[Loss, Metrics]:
    """Implicit PRM with cross-entropy: classifies correct and wrong answers by log-ratio.

        r    = beta log pi(y|x)/pi_ref(y|x)
        loss = -log sigmoid(r) if the answer is correct, -log sigmoid(-r) if not

    averaged over examples. The loss is log 2 when the policy is the reference. The trained model
    also scores the steps of an answer: see `process_rewards`.

    Args:
      policy: the answer under the policy. Reads `logp`, [B].
      ref: the answer under the frozen reference. Reads `logp`, [B].
      batch: `label`, [B], 1 if the answer is correct, else 0.
      beta: reward per nat of log-ratio.

    Returns:
      The loss, and [B] metrics `rewards/*` and `logps/response`.

    Source:
      Paper: Yuan et al. 2024, arXiv:2412.01981.
      Code: PRIME-RL/ImplicitPRM@c044175.
      Differences: none. This is `bco` without its shift.
    """
    reward = beta * log_ratio(policy.response, ref.response)
    margin = label_sign(batch["label"]) * reward
    return per_example(softplus(-margin)), labeled_metrics(policy.response, reward, margin)


def process_rewards(policy: SequenceStats, ref: SequenceStats, beta: float | Array = 0.05) -> Array:
    """The reward of an answer up to each of its tokens, q_t = beta sum_{k<=t} log-ratio, [..., T].

    The reward of a step is q at its last token minus q at the last token of the step before (0
    before the first); q at the last token is the reward of the answer. After the last token q is
    constant.
    """
    return beta * jnp.cumsum(policy.token["logp"] - ref.token["logp"], -1)
