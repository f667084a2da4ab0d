"""Measures of models over prompts, each with its uncertainty; numpy only.

Prompts are independent, answers to one prompt are not: every measure is first averaged over the
answers of a prompt, and its uncertainty is over prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..report.samples import Estimate

Z = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution: intervals have 95 %."""
PRIOR = 5.0
"""Standard deviation of the normal prior of the coefficients of the length-controlled win rate, in
logits: a rate of 0.99 is less than one of them away from 0.5."""
RESAMPLES, SEED = 1000, 0
"""Samples of the bootstrap, and their seed."""
NUMBERS = 2**22
"""Most numbers of an array of the bootstrap."""
NEWTON, HALVINGS = 100, 40
"""Most steps of the optimization, and most halvings of a step."""


class Measured(NamedTuple):
    """A mean over prompts, or over pairs."""

    mean: float
    """NaN if no prompt has a value."""
    error: float
    """Standard error; NaN if fewer than two prompts have a value."""
    number: int
    """Prompts or pairs with a value."""

    @property
    def estimate(self) -> tuple[float, float]:
        """The mean and its standard error."""
        return self.mean, self.error

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> Measured:
        """The mean of independent values [n], without NaN, and its standard error."""
        found = np.asarray(values, np.float64)
        found = found[~np.isnan(found)]
        if not len(found):
            return cls(math.nan, math.nan, 0)
        estimate = Estimate.of(found.tolist())
        return cls(estimate.mean, estimate.error, len(found))


class Rate(NamedTuple):
    """A rate from 0 to 1 with its 95 % interval."""

    value: float
    low: float
    high: float


class Controlled(NamedTuple):
    """A length-controlled win rate."""

    rate: Rate
    """NaN if the data cannot tell the model from the length."""
    length_effect: float
    """The coefficient of the length, in logits: above 0 longer answers win more often."""


def wins(baseline: np.ndarray, other: np.ndarray) -> np.ndarray:
    """1 where the other answer has the higher score, 1/2 where both are equal, else 0.

    Args:
      baseline: scores [prompts, n] of the answers of the baseline.
      other: scores of the answers of the other model, in the same order.

    Returns:
      [prompts, n].
    """
    return 0.5 + 0.5 * np.sign(other - baseline)


def win_rate(shares: np.ndarray) -> Rate:
    """The mean of shares of wins over prompts, with a 95 % interval that never has zero width.

    The interval adds z^2 prompts, half of them won and half lost, and is then the usual one:

        n' = n + z^2,  m = (sum of shares + z^2 / 2) / n'
        s^2 = (sum of (share - m)^2 + z^2 / 2 (m^2 + (1 - m)^2)) / n'
        m +- z s / sqrt(n'),  cut to [0, 1]

    For shares of 0 and 1 s^2 is m (1 - m), and this is the interval of Agresti and Coull, whose
    middle is the middle of Wilson's score interval; shares between have the variance that they
    have. At a rate of 0 or 1 the usual interval and the bootstrap both have zero width.

    Args:
      shares: [prompts], the share of wins of each prompt, 0 to 1.

    Source:
      Agresti and Coull 1998, The American Statistician 52(2), p. 119; Wilson 1927.
      Differences: shares between 0 and 1.
    """
    extra = Z**2
    count = len(shares) + extra
    middle = (shares.sum() + extra / 2) / count
    added = extra / 2 * (middle**2 + (1 - middle) ** 2)
    spread = math.sqrt((((shares - middle) ** 2).sum() + added) / count)
    reach = Z * spread / math.sqrt(count)
    low, high = max(middle - reach, 0.0), min(middle + reach, 1.0)
    return Rate(float(shares.mean()), float(low), float(high))


def controlled_win_rate(won: np.ndarray, longer: np.ndarray) -> Controlled:
    """The win rate that the other model would have with answers as long as the baseline's.

        P(win) = sigmoid(theta + phi tanh(d / std d)),  rate = sigmoid(theta)

    d is the difference of lengths. theta and phi maximize the likelihood of the wins, where a tie
    is half a win and half a loss and each prompt counts once, plus the density of a normal prior
    with mean 0 and standard deviation 5: so both are finite where all answers win. The interval has
    the quantiles 2.5 % and 97.5 % of 1,000 bootstrap samples of prompts, with a fixed seed. Where
    one model wins everywhere all samples are the same, and the interval has no width: read
    `win_rate` there.

    Args:
      won: [prompts, n], 0, 1/2 or 1; see `wins`.
      longer: [prompts, n], the length of the other answer minus the length of the baseline's.

    Source:
      Dubois et al. 2024, arXiv:2404.04475, Section 3.
      Differences: no term for the difficulty of a prompt, which they fit on the answers of many
      models; wins from scores, not the probability that a judge gives; the prior in place of a
      regularization chosen by cross-validation.
    """
    spread = float(longer.std())
    if spread == 0 and longer.any():
        return Controlled(Rate(math.nan, math.nan, math.nan), math.nan)
    x = np.tanh(longer / (spread or 1.0)).reshape(-1)
    y, prompts = won.reshape(-1), len(won)
    whole = _fit(y, x, np.ones((1, prompts)), np.zeros(2))[0]
    counts = np.random.default_rng(SEED).multinomial(prompts, [1 / prompts] * prompts, RESAMPLES)
    step = max(NUMBERS // len(y), 1)
    found = [_fit(y, x, counts[i : i + step], whole)[:, 0] for i in range(0, RESAMPLES, step)]
    low, high = np.quantile(_sigmoid(np.concatenate(found)), (0.025, 0.975))
    rate = Rate(float(_sigmoid(whole[0])), float(low), float(high))
    return Controlled(rate, float(whole[1]))


def _fit(y: np.ndarray, x: np.ndarray, counts: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The coefficients of greatest posterior density for several weights, [resamples, 2].

    Args:
      y: wins [prompts * n].
      x: the length term [prompts * n].
      counts: how often each prompt counts, [resamples, prompts].
      start: coefficients to begin from, [2].
    """
    each = len(y) // counts.shape[1]
    weights = np.repeat(counts / each, each, axis=1)

    def density(beta: np.ndarray) -> np.ndarray:
        logits = beta[:, :1] + beta[:, 1:] * x
        fit = (weights * (y * logits - np.logaddexp(0, logits))).sum(1)
        return fit - (beta**2).sum(1) / (2 * PRIOR**2)

    beta = np.tile(start, (len(counts), 1))
    value = density(beta)
    for _ in range(NEWTON):
        step, tried = _newton(beta, y, x, weights), value
        if np.abs(step).max() < 1e-9:
            break
        for _ in range(HALVINGS):
            tried = density(beta + step)
            # The density is concave, so a step that is short enough never lowers it.
            worse = tried < value - 1e-12 * np.abs(value)
            if not worse.any():
                break
            step[worse] /= 2
        beta, value = beta + step, tried
    return beta


def _newton(beta: np.ndarray, y: np.ndarray, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """A Newton step of the log-density from coefficients [resamples, 2]."""
    p = _sigmoid(beta[:, :1] + beta[:, 1:] * x)
    off, curved = weights * (y - p), weights * p * (1 - p)
    slope = np.stack([off.sum(1), off @ x], 1) - beta / PRIOR**2
    a, b, c = curved.sum(1) + PRIOR**-2, curved @ x, curved @ x**2 + PRIOR**-2
    inverse = np.array([[c, -b], [-b, a]]) / (a * c - b * b)
    return np.einsum("ijr,rj->ri", inverse, slope)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(x / 2))
