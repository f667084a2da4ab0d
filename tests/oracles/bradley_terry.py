"""In a vocabulary of two tokens the target's logit is its log-odds, the other's 0."""

import numpy as np

from .scalars import log1mexp, sigmoid, softplus

HYPER = {"bradley_terry": [{}, {"center": 0.01}, {"center": 0.3}], "adaptive_margin": [{}]}


def logits(tokens):
    """Log-probabilities -> logits, and the slope of each logit by its log-probability."""
    return (
        np.array([y - log1mexp(y) for y in tokens]),
        np.array([-1 / np.expm1(y) for y in tokens]),
    )


def rewards(policy, slopes):
    """`slopes(i, r_w, r_l)` is (loss, slope of r_w, slope of r_l)."""
    n = len(policy["chosen"])
    loss, grad = 0.0, {"chosen": [], "rejected": []}
    for i in range(n):
        (w, by_w), (y, by_y) = (logits(policy[row][i]) for row in ("chosen", "rejected"))
        value, slope_w, slope_y = slopes(i, w.sum(), y.sum())
        loss += value / n
        grad["chosen"].append(slope_w * by_w / n)
        grad["rejected"].append(slope_y * by_y / n)
    return loss, grad


def bradley_terry(policy, ref, columns, previous=None, center=0.0):
    def slopes(i, w, y):
        pull = 2 * center * (w + y)
        value = softplus(y - w) + center * (w + y) ** 2
        return value, pull - sigmoid(y - w), pull + sigmoid(y - w)

    return rewards(policy, slopes)


def adaptive_margin(policy, ref, columns, previous=None):
    def slopes(i, w, y):
        z = w - y - float(columns["margin"][i])
        return softplus(-z), -sigmoid(-z), sigmoid(-z)

    return rewards(policy, slopes)
