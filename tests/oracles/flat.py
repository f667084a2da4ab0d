"""Each divergence as its two halves: (value, slope) of the template and of the answer."""

import math

import numpy as np

from .scalars import sigmoid

NAMES = ("tv", "kl", "jeffrey", "pearson", "js")
HYPER = {"flat": [{"divergence": name} for name in NAMES]}


def good_half(p, divergence):
    if divergence == "tv":
        return -math.tanh(p) / 2, -0.5 / math.cosh(p) ** 2
    if divergence == "js":
        return math.log(1 + math.exp(-p)) - math.log(2), -sigmoid(-p)
    return -p, -1.0


def bad_half(p, divergence):
    if divergence == "tv":
        return math.tanh(p) / 2, 0.5 / math.cosh(p) ** 2
    if divergence == "kl":
        return math.exp(p - 1), math.exp(p - 1)
    if divergence == "jeffrey":
        return p + p**2 / 4 + p**3 / 16, 1 + p / 2 + 3 * p**2 / 16
    if divergence == "pearson":
        return p**2 / 4 + p, p / 2 + 1
    return p + math.log(1 + math.exp(-p)) - math.log(2), 1 - sigmoid(-p)


def flat(policy, ref, columns, previous=None, divergence="tv"):
    n = len(policy["chosen"])
    loss, grad = 0.0, {"chosen": [], "rejected": []}
    for row, half in (("chosen", good_half), ("rejected", bad_half)):
        for y in policy[row]:
            value, slope = half(np.exp(y).mean(), divergence)
            loss += value / n
            grad[row].append(slope * np.exp(y) / len(y) / n)
    return loss, grad
