"""Loss adjustment for unlearning, by f-divergences of mean token probabilities."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp

from ..core.objective import objective
from ..core.types import Array, Loss, Metrics, Pairs, SequenceStats, per_example
from ._common import pair_metrics

Divergence = Literal["tv", "kl", "jeffrey", "pearson", "js"]


@objective(Pairs, source="Wang et al. 2024, FLAT, arXiv:2410.11143")
def flat(policy: Pairs, *, divergence: Divergence = "tv") -> tuple[Loss, Metrics]:
    """FLAT: raises a template answer and lowers the answer to forget.

        P(y) = mean over the tokens of y of their probability
        loss = tanh(P(y_l))/2 - tanh(P(y_w))/2

    averaged over pairs; y_w is the template, such as "I don't know", and y_l the answer to forget.
    It needs no reference and no other data. The other divergences are

        kl       e^(P_l - 1) - P_w                  pearson  P_l + P_l^2/4 - P_w
        jeffrey  P_l + P_l^2/4 + P_l^3/16 - P_w     js       log(1 + e^-P_w) + log(1 + e^-P_l)
                                                             + P_l - 2 log 2

    The gradient of a token per nat is proportional to its probability: rare tokens hardly move.

    Args:
      policy: both answers under the policy. Reads token `logp`, [B, T], `length`.
      divergence: the divergence; `tv` is the first formula.

    Returns:
      The loss, and [B] metrics `rewards/*` (P) and `logps/*`.

    Source:
      Paper: Wang et al. 2024, arXiv:2410.11143.
      Code: UCSC-REAL/FLAT@bf2ef07.
      Differences: the mean is over response tokens; the code's is over prompt and padding too. Its
      branches for reverse KL, squared Hellinger and Neyman push the wrong way and are left out.
    """
    good, bad = _probability(policy.chosen), _probability(policy.rejected)
    loss = {
        "tv": 0.5 * jnp.tanh(bad) - 0.5 * jnp.tanh(good),
        "kl": jnp.exp(bad - 1.0) - good,
        "jeffrey": bad + bad**2 / 4 + bad**3 / 16 - good,
        "pearson": bad + bad**2 / 4 - good,
        "js": _log_cosh(good / 2) + _log_cosh(bad / 2) + (bad - good) / 2,
    }[divergence]
    return per_example(loss), pair_metrics(policy, good, bad)


def _probability(y: SequenceStats) -> Array:
    """The mean probability of a token, [B]."""
    return (jnp.exp(y.token["logp"]) * y.mask).sum(-1) / jnp.maximum(y.length, 1.0)


def _log_cosh(x: Array) -> Array:
    """The logarithm of cosh, accurate near 0: log(1 + e^-P) is log 2 - P/2 + log cosh(P/2)."""
    return jnp.log1p(2 * jnp.sinh(x / 2) ** 2)
