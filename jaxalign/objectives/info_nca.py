"""Noise-contrastive alignment with explicit rewards: InfoNCA and NCA."""

from __future__ import annotations

import jax.numpy as jnp
from jax.nn import log_sigmoid, logsumexp, softmax, softplus

from ..core.objective import objective
from ..core.types import Array, Loss, Metrics, Ranked, per_example
from ._common import Positive, log_ratio, ranked_metrics


@objective(Ranked, source="Chen et al. 2024, arXiv:2402.05369, InfoNCA", columns=("scores",))
def info_nca(
    policy: Ranked,
    ref: Ranked,
    batch: dict[str, Array],
    *,
    beta: Positive = 0.01,
    alpha: Positive = 1.0,
) -> tuple[Loss, Metrics]:
    """InfoNCA: cross-entropy between scores and rewards as distributions over R responses.

        m_i  = beta log pi(y_i|x)/pi_ref(y_i|x),   t = softmax(scores / alpha)
        loss = - sum_i t_i log softmax(m)_i

    averaged over examples. The loss is log R when the policy is the reference, and equals DPO's
    loss for two responses as alpha goes to 0.

    Args:
      policy: the R responses under the policy. Reads `logp`, [B, R].
      ref: the R responses under the frozen reference. Reads `logp`, [B, R].
      batch: `scores`, [B, R], higher is better.
      beta: reward per nat of log-ratio; larger keeps the policy nearer the reference.
      alpha: temperature, in units of the scores; smaller weighs the best response more.

    Returns:
      The loss, and [B] metrics `rewards/*` (chosen: the response of the best score) and
      `logps/responses`.

    Source:
      Paper: Chen et al. 2024, arXiv:2402.05369.
      Code: thu-ml/Noise-Contrastive-Alignment.
      Differences: none from the paper. The authors' recipe has alpha 1e-4, nearly a hard choice,
      and adds 0.01 to the best score; here ties stay ties.
    """
    reward = beta * log_ratio(policy.responses, ref.responses)
    target = softmax(batch["scores"] / alpha, -1)
    loss = (target * softplus(_rivals(reward) - reward)).sum(-1)
    return per_example(loss), ranked_metrics(policy.responses, reward, batch["scores"].argmax(-1))


@objective(Ranked, source="Chen et al. 2024, arXiv:2402.05369, NCA", columns=("scores",))
def nca(
    policy: Ranked,
    ref: Ranked,
    batch: dict[str, Array],
    *,
    beta: Positive = 0.01,
    alpha: Positive = 1.0,
) -> tuple[Loss, Metrics]:
    """NCA: classifies each of R responses as drawn from the target or from the reference.

        m_i  = beta log pi(y_i|x)/pi_ref(y_i|x),   t = softmax(scores / alpha)
        loss = - sum_i [ t_i log sigmoid(m_i) + (1/R) log sigmoid(-m_i) ]

    averaged over examples. The minimum is where sigmoid(m_i) = t_i / (t_i + 1/R), so that only a
    response with t_i = 0 is pushed without end. The loss is 2 log 2 when the policy is the
    reference.

    Args:
      policy: the R responses under the policy. Reads `logp`, [B, R].
      ref: the R responses under the frozen reference. Reads `logp`, [B, R].
      batch: `scores`, [B, R], higher is better.
      beta: reward per nat of log-ratio; larger keeps the policy nearer the reference.
      alpha: temperature, in units of the scores; smaller weighs the best response more.

    Returns:
      The loss, and [B] metrics `rewards/*` (chosen: the response of the best score) and
      `logps/responses`.

    Source:
      Paper: Chen et al. 2024, arXiv:2402.05369.
      Code: thu-ml/Noise-Contrastive-Alignment.
      Differences: none from the paper. The authors' recipe has alpha 1e-4, nearly a hard choice,
      and adds 0.01 to the best score; here ties stay ties.
    """
    reward = beta * log_ratio(policy.responses, ref.responses)
    target = softmax(batch["scores"] / alpha, -1)
    loss = -(target * log_sigmoid(reward)).sum(-1) - log_sigmoid(-reward).mean(-1)
    return per_example(loss), ranked_metrics(policy.responses, reward, batch["scores"].argmax(-1))


def _rivals(reward: Array) -> Array:
    """The logsumexp of all other rewards, [B, R]: -log softmax is softplus(rivals - reward)."""
    own = jnp.eye(reward.shape[-1], dtype=bool)
    return logsumexp(jnp.where(own, -jnp.inf, reward[:, None]), -1)
