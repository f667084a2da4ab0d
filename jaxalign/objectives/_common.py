"""Shared parts of objectives: ranges of hyper-parameters, log-ratios, metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import annotated_types
import jax.numpy as jnp

from ..core.types import (
    Array,
    Loss,
    Metrics,
    Pairs,
    Rationales,
    Revised,
    SequenceStats,
    per_example,
    per_token,
)

Positive = Annotated[float, annotated_types.Gt(0)]
NonNegative = Annotated[float, annotated_types.Ge(0)]
FlipRate = Annotated[float, annotated_types.Interval(ge=0, lt=0.5)]
Fraction = Annotated[float, annotated_types.Interval(ge=0, le=1)]
Even = Annotated[int, annotated_types.Ge(2), annotated_types.MultipleOf(2)]
Decay = Annotated[float, annotated_types.Interval(ge=0, lt=1)]


def log_ratio(policy: SequenceStats, ref: SequenceStats) -> Array:
    """The log-ratio log pi(y|x) - log pi_ref(y|x) of policy and reference, nats.

    A sum of differences: of 4,000 tokens, the difference of sums is off by 4e-4 nats.
    """
    return (policy.token["logp"] - ref.token["logp"]).sum(-1)


def between(name: str, low: float, high: float) -> Callable[[Mapping[str, Any]], str]:
    """A `check` for an objective: the column `name` must be in [low, high]."""
    wrong = f"{name} must be between {low:g} and {high:g}"
    return lambda columns: "" if low <= columns[name] <= high else wrong


def avg_log_ratio(policy: SequenceStats, ref: SequenceStats) -> Array:
    """The log-ratio per token, nats; 0 for an empty response."""
    return log_ratio(policy, ref) / jnp.maximum(policy.length, 1.0)


def nll(response: SequenceStats, reduction: Literal["mean", "sum", "token_mean"]) -> Loss:
    """The negative log-likelihood of responses, nats.

    Args:
      response: the responses under the policy.
      reduction: the average: `mean`, over the tokens of each response, then over responses; `sum`,
        over responses; `token_mean`, over the tokens of all responses of the batch.
    """
    if reduction == "token_mean":
        return per_token(-response.logp, response.length)
    return per_example(-(response.avg_logp if reduction == "mean" else response.logp))


def label_sign(label: Array) -> Array:
    """+1 for a desirable response (label 1), -1 for an undesirable one (label 0)."""
    return jnp.where(label > 0.5, 1.0, -1.0).astype(label.dtype)


def reward_metrics(chosen: Array, rejected: Array) -> Metrics:
    """Metrics of the rewards of pairs, [B] each."""
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).astype(jnp.float32),
    }


def pair_metrics(policy: Pairs | Rationales | Revised, chosen: Array, rejected: Array) -> Metrics:
    """Metrics of every objective on pairs, [B] each, from the rewards `chosen` and `rejected`."""
    return reward_metrics(chosen, rejected) | {
        "logps/chosen": policy.chosen.logp,
        "logps/rejected": policy.rejected.logp,
    }


def ranked_metrics(responses: SequenceStats, reward: Array, best: Array) -> Metrics:
    """Metrics of every objective on rankings, [B] each.

    Args:
      responses: the responses under the policy, [B, R].
      reward: the rewards of the responses, [B, R].
      best: the index of the best response, [B].
    """
    is_best = jnp.arange(reward.shape[-1])[None] == best[:, None]
    chosen = jnp.where(is_best, reward, 0.0).sum(-1)
    rivals = jnp.where(is_best, -jnp.inf, reward).max(-1)
    return {
        "rewards/chosen": chosen,
        "rewards/margins": chosen - rivals,
        "rewards/accuracies": (chosen > rivals).astype(jnp.float32),
        "logps/responses": responses.logp.mean(-1),
    }


def labeled_metrics(response: SequenceStats, reward: Array, margin: Array) -> Metrics:
    """Metrics of every objective on labeled responses, [B] each.

    Args:
      response: the response under the policy.
      reward: the reward of the response.
      margin: the distance of the reward from the decision threshold, positive on the side of its
        label.
    """
    return {
        "rewards/response": reward,
        "rewards/margins": margin,
        "rewards/accuracies": (margin > 0).astype(jnp.float32),
        "logps/response": response.logp,
    }
