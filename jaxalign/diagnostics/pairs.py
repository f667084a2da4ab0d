"""Diagnostics of preference pairs: ranking, its limit, calibration, entangled gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.nn import log_sigmoid, sigmoid

from ..core.layouts import PAIRS
from ..core.types import Array, Metrics, Pairs
from ._common import diagnostic

BINS = 10


def _is(condition: Array) -> Array:
    return condition.astype(jnp.float32)


@diagnostic(Pairs, source="Chen et al. 2024, arXiv:2405.19534")
def ranking(policy: Pairs) -> Metrics:
    """Whether the policy gives the chosen response the higher likelihood; needs no reference.

    accuracy            1[s_w > s_l]
    accuracy_per_token  1[s_w / n_w > s_l / n_l]
    """
    chosen, rejected = policy.chosen, policy.rejected
    return {
        "ranking/accuracy": _is(chosen.logp > rejected.logp),
        "ranking/accuracy_per_token": _is(chosen.avg_logp > rejected.avg_logp),
    }


@diagnostic(Pairs, source="Chen et al. 2024, arXiv:2405.19534")
def difficulty(ref: Pairs, beta: float, *, alpha: float | Array = 0.75) -> Metrics:
    """How far DPO must train until it ranks a pair correctly; depends only on the reference.

    With c = ref_l - ref_w, the policy ranks the pair correctly exactly where its DPO loss is below

        threshold = -log sigmoid(beta c)

    and an optimal DPO policy ranks it correctly exactly where annotators choose y_w more often than

        win_rate = sigmoid(beta c)

    Args:
      ref: both responses under the reference. Reads `logp`, [B].
      beta: DPO's beta, reward per nat of log-ratio.
      alpha: the rate at which annotators prefer chosen, one number for all pairs or [B].

    Returns:
      threshold, win_rate, `reference` (whether the reference ranks the pair correctly) and
      `idealized` (whether an optimal policy does, where the win rate is alpha).
    """
    c = ref.rejected.logp - ref.chosen.logp
    alpha = jnp.asarray(alpha, c.dtype)
    return {
        "difficulty/threshold": -log_sigmoid(beta * c),
        "difficulty/win_rate": sigmoid(beta * c),
        "difficulty/reference": _is(c < 0),
        "difficulty/idealized": _is(jnp.log(alpha) - jnp.log1p(-alpha) > beta * c),
    }


@diagnostic(Pairs, source="Yan et al. 2024, arXiv:2406.07327")
def three_d(policy: Pairs, ref: Pairs) -> Metrics:
    """Drop, degradation and dispersion of likelihood (the 3D properties of DPO).

    drop_chosen, drop_rejected  1[s < ref]
    degradation                 s_w - s_l = log |dL/dpi_l| / |dL/dpi_w|
    dispersion                  log (pi_w + pi_l) - log (ref_w + ref_l)

    A dispersion below 0 means that probability moved from these two responses to others.
    UNVERIFIED: the paper was read in secondary sources; it shows dispersion by unseen responses of
    a toy model.
    """
    chosen, rejected = policy.chosen.logp, policy.rejected.logp
    before = jnp.logaddexp(ref.chosen.logp, ref.rejected.logp)
    return {
        "three_d/drop_chosen": _is(chosen < ref.chosen.logp),
        "three_d/drop_rejected": _is(rejected < ref.rejected.logp),
        "three_d/degradation": chosen - rejected,
        "three_d/dispersion": jnp.logaddexp(chosen, rejected) - before,
    }


def _gap(confidence: Array, right: Array) -> Array:
    """[B] -> [B, BINS]: right - confidence, in the bin of the confidence."""
    number = jnp.minimum((confidence * BINS).astype(jnp.int32), BINS - 1)
    return jax.nn.one_hot(number, BINS) * (_is(right) - confidence)[:, None]


@diagnostic(
    Pairs,
    source="Guo et al. 2017, arXiv:1706.04599, Eq. 3; Wang et al. 2023, arXiv:2309.16240",
    finish=lambda gaps: float(np.abs(gaps).sum()),
)
def calibration(policy: Pairs, margins: Array) -> Metrics:
    """Expected calibration error of the ranking, in 10 bins of equal width.

        ECE = sum over bins |sum in bin (right - confidence)| / number of pairs

    reward      right = 1[margin > 0], confidence = sigmoid(|margin|)
    likelihood  right = 1[m_w > m_l],  confidence = exp(m_w),  m = s / n, per token
    """
    chosen, rejected = policy.chosen.avg_logp, policy.rejected.avg_logp
    return {
        "calibration/reward": _gap(sigmoid(jnp.abs(margins)), margins > 0),
        "calibration/likelihood": _gap(jnp.exp(chosen), chosen > rejected),
    }


@diagnostic(Pairs, source="Yuan et al. 2024, arXiv:2410.13828")
def entanglement(gradients: dict[str, Any]) -> Metrics:
    """The coupling between the gradients of the chosen and the rejected log-probability.

        rho = <g_w, g_l> / min(|g_w|^2, |g_l|^2)

    If a loss weighs both gradients equally, as DPO does, a small step raises chosen and lowers
    rejected exactly where rho < 1.

    Args:
      gradients: the gradients of the summed log-probabilities, averaged over the probe batch, under
        the keys "chosen" and "rejected"; trees of the same structure.

    Returns:
      Scalars: inner product, cosine, both squared norms, rho.
    """
    chosen, rejected = (optax.tree.cast(gradients[row], jnp.float32) for row in PAIRS.responses)

    def dot(a: Any, b: Any) -> Array:
        return jnp.asarray(optax.tree.vdot(a, b))

    inner, norms = dot(chosen, rejected), (dot(chosen, chosen), dot(rejected, rejected))
    return {
        "entanglement/inner": inner,
        "entanglement/cosine": inner / jnp.sqrt(norms[0]) / jnp.sqrt(norms[1]),
        "entanglement/chosen_norm2": norms[0],
        "entanglement/rejected_norm2": norms[1],
        "entanglement/rho": inner / jnp.minimum(*norms),
    }
