import numpy as np

from .scalars import sigmoid, softplus

HYPER = {"implicit_prm": [{}, {"beta": 0.5}]}


def implicit_prm(policy, ref, columns, previous=None, beta=0.05):
    n = len(policy["response"])
    loss, grad = 0.0, []
    for i in range(n):
        y, label = policy["response"][i], float(columns["label"][i])
        r = beta * (y.sum() - ref["response"][i].sum())
        loss += (label * softplus(-r) + (1 - label) * softplus(r)) / n
        slope = (1 - label) * sigmoid(r) - label * sigmoid(-r)
        grad.append(np.full(len(y), beta * slope / n))
    return loss, {"response": grad}
