"""The methods of `pair` on the scores of one prompt: arrays in, indices and numbers out."""

from __future__ import annotations

import math

import numpy as np

Pair = tuple[int, int]
"""The indices of two answers, the winner first."""


def ranks(scores: np.ndarray) -> list[int]:
    """The indices of N scores, the highest first; equal scores in their order."""
    return np.argsort(-scores, kind="stable").tolist()


def spaced(count: int, keep: int) -> list[int]:
    """Evenly spaced ranks from first to last: k (count - 1) / (keep - 1), rounded half up.

    Args:
      count: the number of ranks, at least `keep`.
      keep: the number of ranks to take, at least 2.
    """
    return [(2 * k * (count - 1) + keep - 1) // (2 * (keep - 1)) for k in range(keep)]


def in_order(i: int, j: int, scores: np.ndarray) -> Pair:
    """Two answers, the higher score first; of equal scores, the first given."""
    return (i, j) if scores[i] >= scores[j] else (j, i)


def best_and_worst(scores: np.ndarray) -> list[Pair]:
    """The highest score against the lowest, the first of equal ones each."""
    return [(int(scores.argmax()), int(scores.argmin()))]


def every_two(scores: np.ndarray) -> list[Pair]:
    """All pairs of N answers, N (N - 1) / 2."""
    n = len(scores)
    return [in_order(i, j, scores) for i in range(n) for j in range(i + 1, n)]


def tournament(
    scores: np.ndarray, rng: np.random.Generator, *, first_round: bool = False
) -> list[Pair]:
    """The matches of a single-elimination tournament among N answers.

    The answers are drawn into a random order. In each round neighbors meet, an answer left over
    advances without a match, and the winners keep their order. Of equal scores the first in the
    order wins.

    Args:
      scores: the scores, [N].
      rng: the source of the order.
      first_round: whether to end after the first round, N/2 matches; otherwise N - 1.

    Source:
      Liu et al. 2023, RSO, arXiv:2309.06657: "first-round-rank" and "tournament-rank".
      UNVERIFIED: the treatment of a number of answers that is no power of two.
    """
    order, matches = rng.permutation(len(scores)).tolist(), []
    while len(order) > 1:
        met = [in_order(order[k], order[k + 1], scores) for k in range(0, len(order) - 1, 2)]
        matches += met
        if first_round:
            break
        order = [winner for winner, _ in met] + order[2 * len(met) :]
    return matches


def rejection_sample(
    scores: np.ndarray, keep: int, beta: float, rng: np.random.Generator
) -> tuple[list[int], int]:
    """Statistical rejection sampling of answers, without replacement.

        accept y with probability exp((r(y) - max r) / beta)

    Passes over the remaining candidates, with the maximum of those that remain, are repeated until
    `keep` are accepted. beta to 0 accepts the best, beta to infinity any. The candidates are in
    random order, so that their order in the file does not matter.

    Args:
      scores: the rewards r, [N].
      keep: the number of answers to accept, at most N.
      beta: temperature, in units of the reward.
      rng: the source of the draws.

    Returns:
      The indices of the accepted answers, and the number of draws.

    Source:
      Liu et al. 2023, RSO, arXiv:2309.06657, Algorithm 1.
      Differences: the random order of the candidates.
    """
    left, accepted, draws = rng.permutation(len(scores)).tolist(), [], 0
    while len(accepted) < keep:
        highest, passed = float(scores[left].max()), []
        for i in left:
            draws += 1
            if rng.random() < math.exp((float(scores[i]) - highest) / beta):
                passed.append(i)
                if len(accepted) + len(passed) == keep:
                    break
        accepted += passed
        left = [i for i in left if i not in passed]
    return accepted, draws


def preference(gap: float | np.ndarray, scale: float) -> np.ndarray:
    """The probability of winning by a difference of scores, sigmoid(gap / scale)."""
    with np.errstate(over="ignore"):
        return 0.5 + 0.5 * np.tanh(0.5 * (np.asarray(gap, np.float64) / scale))


def preference_gap(won: float, lost: float, others: np.ndarray, scale: float) -> float:
    """The mean over other answers o of P(y_w > o) - P(y_l > o), from -1 to 1.

    Args:
      won: the score of y_w.
      lost: the score of y_l.
      others: the scores of the other answers, [N], N at least 1.
      scale: difference of scores at which winning is e times as likely as losing.
    """
    return float((preference(won - others, scale) - preference(lost - others, scale)).mean())


def target_logps(
    logps: np.ndarray, sampler_logps: np.ndarray, scores: np.ndarray, beta: float, drawn: int
) -> np.ndarray:
    """Log-probabilities of answers under the model tilted by the score, normalized by the samples.

        p(y) = p_model(y) exp(r(y) / beta) / Z
        Z    = 1/n sum_i exp(r(y_i) / beta) p_model(y_i) / q(y_i)

    Args:
      logps: log p_model(y_i), [N], nats.
      sampler_logps: log q(y_i), [N], nats, under the distribution that the answers were drawn from.
      scores: r(y_i), [N].
      beta: temperature, in units of the score.
      drawn: n, the number of answers drawn; more than N where p is 0 for answers left out.

    Returns:
      log p(y_i), [N], nats; not finite where the scores are too large for beta.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        tilted = logps + scores / beta
        ratio = tilted - sampler_logps
        highest = ratio.max()
        return tilted - (highest + np.log(np.exp(ratio - highest).sum() / drawn))
