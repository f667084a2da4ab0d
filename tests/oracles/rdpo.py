import numpy as np

from .dpo import dpo
from .scalars import sigmoid, softplus

HYPER = {
    "rdpo": [
        {},
        {"beta": 0.5, "gamma": 0.3},
        {"form": "nll_mean", "gamma": 1.0},
        {"form": "logsigmoid", "gamma": 0.1},
    ]
}


def rdpo(policy, ref, columns, previous=None, beta=0.1, gamma=0.001, form="nll_sum"):
    loss, grad = dpo(policy, ref, columns, beta=beta)
    n, grad["rationale"] = len(policy["rationale"]), []
    for y in policy["rationale"]:
        s = y.sum()
        if form == "nll_sum":
            value, slope = -gamma * s, -gamma
        elif form == "nll_mean":
            value, slope = -gamma * s / len(y), -gamma / len(y)
        else:
            value, slope = softplus(-gamma * s), -gamma * sigmoid(-gamma * s)
        loss += value / n
        grad["rationale"].append(np.full(len(y), slope / n))
    return loss, grad
