import numpy as np

from .scalars import sigmoid, softplus

HYPER = {"simpo": [{}, {"beta": 5.0, "gamma_beta_ratio": 0.1}]}
WORKED = [("simpo", {}, 2.031934711644, -0.3475673318282, 0.2482623798773)]


def simpo(policy, ref, columns, previous=None, beta=2.0, gamma_beta_ratio=0.5):
    n = len(policy["chosen"])
    loss, grad = 0.0, {"chosen": [], "rejected": []}
    for w, y in zip(policy["chosen"], policy["rejected"], strict=True):
        z = beta * (w.mean() - y.mean()) - beta * gamma_beta_ratio
        loss += softplus(-z) / n
        grad["chosen"].append(np.full(len(w), -beta * sigmoid(-z) / len(w) / n))
        grad["rejected"].append(np.full(len(y), beta * sigmoid(-z) / len(y) / n))
    return loss, grad
