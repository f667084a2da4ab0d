"""Diagnostics of tokens: shifts of likelihood, the likeliest tokens, n-grams of answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import entr

from ..core.stats import LogitRow, TokenStat, log_complement
from ..core.types import Array, Metrics, Pairs, SequenceStats
from ._common import EVERY, diagnostic, responses

K = 10
ORDERS = (1, 2, 3, 4, 5)


def _likeliest(row: LogitRow) -> Array:
    """Probabilities of the K likeliest tokens, or of all tokens if there are fewer."""
    top = jax.lax.top_k(row.logits, min(K, row.logits.shape[-1]))[0]
    return jnp.exp(top - jax.nn.logsumexp(row.logits, -1, keepdims=True))


topk_mass = TokenStat("topk_mass", lambda row: _likeliest(row).sum(-1))
"""Probability of the 10 likeliest tokens together."""

topk_entropy = TokenStat("topk_entropy", lambda row: entr(_likeliest(row)).sum(-1))
"""-sum p log p over the 10 likeliest tokens, nats; they are not renormalized."""


def _per_token(values: Array, y: SequenceStats) -> Array:
    """Average over the scored tokens, [B, T] -> [B]; values are 0 elsewhere. NaN without tokens."""
    return values.sum(-1) / jnp.where(y.length > 0, y.length, jnp.nan)


@diagnostic(
    EVERY,
    source="Shi et al. 2024, arXiv:2410.11677, Section 4.1",
    needs=(topk_mass, topk_entropy),
)
def topk(policy: Any) -> Metrics:
    """Mass and entropy of the 10 likeliest next tokens, averaged over the tokens of a response.

    mass          m = sum of p over the 10
    entropy       H = -sum p log p, nats
    renormalized  the same of p / m: H / m + log m
    """
    out = {}
    for name, y in responses(policy):
        mass, entropy = y.token["topk_mass"], y.token["topk_entropy"]
        m = jnp.where(y.mask > 0, mass, 1.0)
        out[f"topk/{name}_mass"] = _per_token(mass, y)
        out[f"topk/{name}_entropy"] = _per_token(entropy, y)
        out[f"topk/{name}_renormalized"] = _per_token(entropy / m + jnp.log(m), y)
    return out


def gini(values: Array, mask: Array) -> Array:
    """Gini coefficient of the unmasked values >= 0, [..., T] -> [...]; NaN where all are 0.

        G = sum over i of (2 i - n - 1) x_(i) / (n sum x),  x_(1) <= ... <= x_(n)

    0 if all values are equal; near 1 if one value is nearly the whole sum.
    """
    # Masked values count as 0 and sort first, so the others have the last n ranks.
    ordered = jnp.sort(jnp.where(mask > 0, values, 0.0), -1)
    slots, n = values.shape[-1], (mask > 0).sum(-1, keepdims=True)
    rank = jnp.arange(1, slots + 1) - (slots - n)
    total = n[..., 0] * ordered.sum(-1)
    return ((2 * rank - n - 1) * ordered).sum(-1) / jnp.where(total > 0, total, jnp.nan)


@diagnostic(EVERY, source="Mao et al. 2025, arXiv:2410.04834")
def shift(policy: Any, ref: Any) -> Metrics:
    """How far the log-likelihood of a response has moved from the reference, and how evenly.

    (name)        s - ref, nats
    (name)_token  (s - ref) / n, nats per token
    (name)_gini   Gini coefficient of |log pi(y_t) - log ref(y_t)| over the tokens of the response

    UNVERIFIED: the paper's exact definitions.
    """
    out = {}
    before = dict(responses(ref))
    for name, y in responses(policy):
        moved = y.token["logp"] - before[name].token["logp"]
        out[f"shift/{name}"] = moved.sum(-1)
        out[f"shift/{name}_token"] = _per_token(moved, y)
        out[f"shift/{name}_gini"] = gini(jnp.abs(moved), y.mask)
    return out


def _moved(row: LogitRow) -> Array:
    assert row.ref is not None, "a joint statistic needs two models"
    return jnp.abs(row.logits - row.ref)


def _gini_of_all(values: Array) -> Array:
    return gini(values, jnp.ones_like(values))


logit_distance = TokenStat("logit_distance", lambda row: _moved(row).sum(-1), joint=True)
"""sum_v |z_v - z_ref_v|, the distance of the logits from the reference's."""

logit_distance_gini = TokenStat(
    "logit_distance_gini", lambda row: _gini_of_all(_moved(row)), joint=True
)
"""Gini coefficient of |z_v - z_ref_v| over the vocabulary; NaN where none has moved."""

logits_gini = TokenStat("logits_gini", lambda row: _gini_of_all(jnp.abs(row.logits)))
"""Gini coefficient of |z_v| over the vocabulary."""


@diagnostic(
    EVERY,
    source="Mao et al. 2025, arXiv:2410.04834",
    needs=(logit_distance, logit_distance_gini, logits_gini),
)
def logit_shift(policy: Any, ref: Any) -> Metrics:
    """How far the logits of the whole vocabulary are from the reference's, and how evenly.

    (name)              sum over tokens of sum_v |z_v - z_ref_v|
    (name)_token        the same / n
    (name)_gini         Gini coefficient of |z_v - z_ref_v| over the vocabulary, average of tokens
    (name)_logits_gini  Gini coefficient of |z_v| over the vocabulary, average of tokens

    The reference runs live. UNVERIFIED: the paper's exact definitions.
    """
    del ref  # the statistics of the policy already contain it
    out = {}
    for name, y in responses(policy):
        distance = y.token["logit_distance"]
        out[f"logit_shift/{name}"] = distance.sum(-1)
        out[f"logit_shift/{name}_token"] = _per_token(distance, y)
        out[f"logit_shift/{name}_gini"] = _per_token(y.token["logit_distance_gini"], y)
        out[f"logit_shift/{name}_logits_gini"] = _per_token(y.token["logits_gini"], y)
    return out


def _others(row: LogitRow) -> Array:
    here = row.target[..., None]
    others = jnp.put_along_axis(row.logits, here, -jnp.inf, -1, inplace=False)
    return entr(jax.nn.softmax(others, -1)).sum(-1)


others_entropy = TokenStat("others_entropy", _others)
"""Entropy of the token, given that it is not the target, nats."""


@diagnostic(
    Pairs,
    source="Mao et al. 2025, arXiv:2410.04834, Eq. 6",
    needs=(log_complement, others_entropy),
)
def dynamic_target(policy: Pairs, ref: Pairs) -> Metrics:
    """The value of BNF's loss, the cross-entropy with its dynamic target over the whole vocabulary.

    target    t_y = min(1, p_y / ref_y),  t_v = p_v (1 - t_y) / (1 - p_y) for the others
    chosen    -(1/n) sum over tokens of sum_v t_v log p_v
    rejected  the same with the other sign
    loss      their sum
    """
    out = {}
    for (name, y), (_, before), sign in zip(
        responses(policy), responses(ref), (1.0, -1.0), strict=True
    ):
        logp = y.token["logp"]
        target = jnp.exp(jnp.minimum(logp - before.token["logp"], 0.0))
        # For the other tokens t_v = (1 - t_y) q_v and log p_v = log q_v + log(1 - p_y).
        rest = jnp.where(target < 1.0, y.token["log_complement"] - y.token["others_entropy"], 0.0)
        out[f"dynamic_target/{name}"] = -sign * _per_token(target * logp + (1.0 - target) * rest, y)
    out["dynamic_target/loss"] = out["dynamic_target/chosen"] + out["dynamic_target/rejected"]
    return out


def n_grams(answers: Sequence[Sequence[int]], n: int) -> tuple[int, int]:
    """The numbers of distinct n-grams and of all n-grams of a set of answers.

    No n-gram crosses two answers.
    """
    grams = [tuple(a[i : i + n]) for a in answers for i in range(len(a) - n + 1)]
    return len(set(grams)), len(grams)


def diversity(answers: Sequence[Sequence[int]], vocab: int) -> dict[str, float]:
    """Distinct n-grams of a set of answers, n = 1 to 5; no n-gram crosses two answers.

        distinct = N / C,    EAD = N / (V (1 - ((V - 1) / V)^C))

    N distinct n-grams among C, V the vocabulary. EAD divides by the expected number of distinct
    n-grams in C uniform draws, so that longer answers are not penalized.

    Args:
      answers: token ids of each answer, without the token that ends it.
      vocab: V, the vocabulary size of the tokenizer; the largest one if models with different
        tokenizers are compared.

    Returns:
      `distinct/n` and `ead/n` for every n with at least one n-gram, and the averages `distinct` and
      `ead` over these n.

    Source:
      Li et al. 2016, arXiv:1510.03055; Liu et al. 2022, arXiv:2202.13587.
      Differences: token ids, not words. V is the same for every n, as in the code of Kirk et al.
      2024.
    """
    out: dict[str, float] = {}
    for n in ORDERS:
        distinct, count = n_grams(answers, n)
        if not count:
            continue
        # 1 - (1 - 1/V)^C keeps its digits where C is far below V.
        expected = vocab * -math.expm1(count * math.log1p(-1 / vocab)) if vocab > 1 else 1.0
        out |= {f"distinct/{n}": distinct / count, f"ead/{n}": distinct / expected}
    for kind in ("distinct", "ead"):
        values = [v for k, v in out.items() if k.startswith(f"{kind}/")]
        if values:
            out[kind] = sum(values) / len(values)
    return out
