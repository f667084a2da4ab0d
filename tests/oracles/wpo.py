"""The vocabulary has two tokens, so the log-probability of one gives the whole distribution."""

import numpy as np

from .scalars import sigmoid, softplus

HYPER = {"wpo": [{}, {"beta": 0.5}, {"clamp": False}]}
SURROGATES = ("wpo",)


def log_weight(y):
    p, q = np.exp(y), -np.expm1(y)
    return np.mean(y - np.log(p**2 + q**2))


def wpo(policy, ref, columns, previous=None, beta=0.1, clamp=True):
    n = len(policy["chosen"])
    loss, grad = 0.0, {"chosen": [], "rejected": []}
    for i in range(n):
        w, y = policy["chosen"][i], policy["rejected"][i]
        z = beta * (w.sum() - ref["chosen"][i].sum() - (y.sum() - ref["rejected"][i].sum()))
        weight = np.exp(log_weight(w) + log_weight(y))
        weight = min(weight, 1.0) if clamp else weight
        loss += weight * softplus(-z) / n
        slope = weight * beta * sigmoid(-z) / n
        grad["chosen"].append(np.full(len(w), -slope))
        grad["rejected"].append(np.full(len(y), slope))
    return loss, grad
