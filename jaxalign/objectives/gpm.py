"""General preference model: vectors whose skew product predicts which response wins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
from jax import lax
from jax.nn import log_sigmoid

from ..core import stats
from ..core.objective import objective
from ..core.types import Array, Loss, Metrics, Pairs, SequenceStats, per_example
from ._common import Even, Positive

TARGET = 10.0
TINY = 1e-24


def _dimensions(hyper: Mapping[str, Any]) -> int:
    return hyper["dimensions"]


@objective(
    Pairs,
    source="Zhang et al. 2024, arXiv:2410.02197",
    needs=(stats.logit,),
    scores=_dimensions,
)
def gpm(
    policy: Pairs,
    *,
    dimensions: Even = 4,
    tau: Positive = 0.1,
    normalize: bool = True,
    loss: Literal["logistic", "regression"] = "logistic",
) -> tuple[Loss, Metrics]:
    """GPM: a preference model that can represent cycles (a beats b beats c beats a).

        score = sum_b v_w[2b] v_l[2b+1] - v_w[2b+1] v_l[2b],  v = u / |u|
        loss  = -log sigmoid(score / tau)

    averaged over pairs; u is the vector of the reward head at the last token of a response. The
    score of l against w is -score; the loss is log 2 for two equal responses. A single response has
    no score: compare two.

    Args:
      policy: chosen and rejected under the model. Reads token `logit`, [B, dimensions].
      dimensions: width of u, even; two can represent one cycle of preferences.
      tau: score at which winning is e times as likely as losing.
      normalize: whether v is u / |u|, with scores between -1 and 1; otherwise v is u.
      loss: form of the loss: `logistic` as above; `regression`, (score / tau - 10)^2 / 2.

    Returns:
      The loss, and [B] metrics `rewards/margins` (the score) and `rewards/accuracies`.

    Source:
      Paper: Zhang et al. 2024, arXiv:2410.02197 (its policy objective is `gpo`).
      Code: general-preference/general-preference-model@a376d95.
      Differences: there is no gate, which weighs each pair of dimensions by the prompt. Released
      models normalize; in the training code that line is commented out.
    """
    win, lose = (_vector(y, dimensions, normalize) for y in (policy.chosen, policy.rejected))
    score = (win[:, 0::2] * lose[:, 1::2] - win[:, 1::2] * lose[:, 0::2]).sum(-1)
    metrics = {"rewards/margins": score, "rewards/accuracies": (score > 0).astype(jnp.float32)}
    if loss == "regression":
        return per_example(0.5 * (score / tau - TARGET) ** 2), metrics
    return per_example(-log_sigmoid(score / tau)), metrics


def _vector(response: SequenceStats, dimensions: int, normalize: bool) -> Array:
    """The head's vector for a response, [B, dimensions], scaled to length 1 if `normalize`."""
    u = response.token["logit"][:, :dimensions]
    if not normalize:
        return u
    return u * lax.rsqrt(jnp.maximum((u * u).sum(-1, keepdims=True), TINY))
