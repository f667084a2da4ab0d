"""With beta 1 the odds cancel; the oracle keeps them, so that other values of beta are covered."""

import math

import numpy as np

from .scalars import log1mexp, sigmoid, softplus

HYPER = {"asft": [{}, {"lam": 0.3}, {"beta": 0.2}]}
WORKED = [("asft", {}, 5.063195847666, -0.4, 0.02199368272604)]


def asft(policy, ref, columns, previous=None, lam=1.0, beta=1.0):
    n = len(policy["chosen"])
    loss, grad = 0.0, {"chosen": [], "rejected": []}
    for w, y in zip(policy["chosen"], policy["rejected"], strict=True):
        a_w, a_l = w.mean(), y.mean()
        o_w, o_l = a_w - log1mexp(a_w), a_l - log1mexp(a_l)
        loss += (-a_w + lam * (softplus(-beta * o_w) + softplus(beta * o_l))) / n
        # The slope of the log-odds in a is 1 / (1 - e^a).
        slope_w = -1 - lam * beta * sigmoid(-beta * o_w) / -math.expm1(a_w)
        slope_l = lam * beta * sigmoid(beta * o_l) / -math.expm1(a_l)
        grad["chosen"].append(np.full(len(w), slope_w / len(w) / n))
        grad["rejected"].append(np.full(len(y), slope_l / len(y) / n))
    return loss, grad
