"""Bidirectional negative feedback, on labeled responses and on pairs."""

from __future__ import annotations

import jax.numpy as jnp
from jax.lax import stop_gradient

from ..core.numerics import log1mexp
from ..core.objective import objective
from ..core.types import Array, Labeled, Loss, Metrics, Pairs, SequenceStats, per_example
from ._common import label_sign, labeled_metrics, log_ratio, pair_metrics


def odds_weights(policy: SequenceStats, ref: SequenceStats) -> Array:
    """min(1, odds of the token under the policy / odds under the reference), constant, [..., T].

    Exact in log space: an epsilon on probabilities would cut the weight of rare tokens.
    """
    lp, rp = policy.token["logp"], ref.token["logp"]
    log_odds_ratio = (lp - rp) - (log1mexp(lp) - log1mexp(rp))
    return stop_gradient(jnp.exp(jnp.minimum(log_odds_ratio, 0.0)))


def _feedback(policy: SequenceStats, ref: SequenceStats) -> tuple[Array, Array]:
    """sum_t w_t log p_t and the mean of w_t, [B] each."""
    weights = odds_weights(policy, ref)
    mean = (weights * policy.mask).sum(-1) / _length(policy)
    return (weights * policy.token["logp"]).sum(-1), mean


def _length(y: SequenceStats) -> Array:
    return jnp.maximum(y.length, 1.0)


def _pair_metrics(policy: Pairs, ref: Pairs, chosen: Array, rejected: Array) -> Metrics:
    """Log-ratios as rewards, and the mean weights of the tokens."""
    rewards = log_ratio(policy.chosen, ref.chosen), log_ratio(policy.rejected, ref.rejected)
    means = {"weights/chosen": chosen, "weights/rejected": rejected}
    return pair_metrics(policy, *rewards) | means


@objective(Labeled, source="Mao et al. 2025, arXiv:2410.04834, Eq. 6", columns=("label",))
def bnf(policy: Labeled, ref: Labeled, batch: dict[str, Array]) -> tuple[Loss, Metrics]:
    """BNF: (un)likelihood whose gradient fades on both sides of the reference, token by token.

    With p and r the probability of a token of y under policy and reference,

        w    = min(1, p (1 - r) / (r (1 - p))),  constant
        loss = -s/|y| sum_t w_t log p_t,  s = +1 if desirable, -1 if not

    averaged over examples. When the policy is the reference every w is 1, and the loss is the SFT
    loss of desirable responses minus the SFT loss of undesirable ones.

    Args:
      policy: the response under the policy. Reads token `logp`, [B, T], and `length`, [B].
      ref: the response under the frozen reference. Reads token `logp`, [B, T].
      batch: `label`, [B], 1 desirable, 0 undesirable.

    Returns:
      The loss, and [B] metrics `rewards/*` (log-ratios, nats), `logps/response` and
      `weights/response` (mean of w).

    Source:
      Paper: Mao et al. 2025, ICLR, arXiv:2410.04834, Eq. 6.
      Code: sail-sg/oat@c1a074c, `BNFLoss`, by the paper's author.
      Differences: the gradient equals the gradient of the paper's cross-entropy with its dynamic
      target; the value does not (the paper's needs the whole vocabulary), and neither is a
      potential: watch `logps/response`. |y| is each response's own length; oat divides as
      `bnf_pair_batch_min` does. oat adds 1e-6 to r, which halves the weight of tokens with r =
      1e-6.
    """
    sign = label_sign(batch["label"])
    reward = log_ratio(policy.response, ref.response)
    feedback, weights = _feedback(policy.response, ref.response)
    metrics = labeled_metrics(policy.response, reward, sign * reward)
    loss = -sign * feedback / _length(policy.response)
    return per_example(loss), metrics | {"weights/response": weights}


@objective(Pairs, source="Mao et al. 2025, arXiv:2410.04834, Eq. 6")
def bnf_pair(policy: Pairs, ref: Pairs) -> tuple[Loss, Metrics]:
    """BNF on pairs: chosen responses are desirable, rejected ones undesirable.

        loss = -1/|y_w| sum_t w_t log p_t (chosen) + 1/|y_l| sum_t w_t log p_t (rejected)

    averaged over pairs, with the constant weights w of `bnf`. The two responses do not interact.

    Args:
      policy: both responses under the policy. Reads token `logp`, [B, T], `length`, [B].
      ref: both responses under the frozen reference. Reads token `logp`, [B, T].

    Returns:
      The loss, and [B] metrics `rewards/*` (log-ratios, nats), `logps/*` and `weights/*`.

    Source:
      Paper: Mao et al. 2025, ICLR, arXiv:2410.04834, Eq. 6.
      Differences: as for `bnf`.
    """
    chosen, chosen_weights = _feedback(policy.chosen, ref.chosen)
    rejected, rejected_weights = _feedback(policy.rejected, ref.rejected)
    loss = rejected / _length(policy.rejected) - chosen / _length(policy.chosen)
    return per_example(loss), _pair_metrics(policy, ref, chosen_weights, rejected_weights)


@objective(
    Pairs,
    source="sail-sg/oat@c1a074c, BNFLoss",
    columns=("weight",),
    couples_examples=True,
)
def bnf_pair_batch_min(policy: Pairs, ref: Pairs, batch: dict[str, Array]) -> tuple[Loss, Metrics]:
    """BNF on pairs as in its author's code, divided by the shortest length of the batch.

        n    = min over the batch of |y_w| and |y_l|
        loss = -1/n sum_t w_t log p_t (chosen) + 1/n sum_t w_t log p_t (rejected)

    averaged over pairs, with the constant weights w of `bnf`. It exists to reproduce that code: the
    loss of a pair depends on the other pairs, and the weight of a response grows with its length
    over n.

    Args:
      policy: both responses under the policy. Reads token `logp`, [B, T], `length`, [B].
      ref: both responses under the frozen reference. Reads token `logp`, [B, T].
      batch: `weight`, [B], 0 for padding.

    Returns:
      The loss, and [B] metrics `rewards/*` (log-ratios, nats), `logps/*` and `weights/*`.

    Source:
      Code: sail-sg/oat@c1a074c, `BNFLoss`, by the paper's author.
      Differences: the gradient is oat's except for its epsilon, as for `bnf`; the value differs. n
      is the minimum over the whole batch; oat takes it over a microbatch on one device.
    """
    chosen, chosen_weights = _feedback(policy.chosen, ref.chosen)
    rejected, rejected_weights = _feedback(policy.rejected, ref.rejected)
    lengths = jnp.minimum(_length(policy.chosen), _length(policy.rejected))
    shortest = jnp.min(lengths, initial=jnp.inf, where=batch["weight"] > 0)
    loss = (rejected - chosen) / shortest
    return per_example(loss), _pair_metrics(policy, ref, chosen_weights, rejected_weights)
