import numpy as np

from .scalars import sigmoid

WEIGHTED = {"beta": 0.3, "desirable_weight": 1.3, "undesirable_weight": 0.7}
HYPER = {"kto": [{}, WEIGHTED], "apo_zero_unpaired": [{}, WEIGHTED]}


def kto(
    policy, ref, columns, previous=None, beta=0.1, desirable_weight=1.0, undesirable_weight=1.0
):
    n = len(policy["response"])
    kl = sum(policy["mismatched"][i].sum() - ref["mismatched"][i].sum() for i in range(n))
    z = max(0.0, kl / n)
    loss, grad = 0.0, {"response": [], "mismatched": []}
    for i in range(n):
        y = policy["response"][i]
        r = y.sum() - ref["response"][i].sum()
        if columns["label"][i] == 1:
            away, back = sigmoid(beta * (z - r)), sigmoid(beta * (r - z))
            loss += desirable_weight * away / n
            slope = -desirable_weight * beta * away * back
        else:
            away, back = sigmoid(beta * (r - z)), sigmoid(beta * (z - r))
            loss += undesirable_weight * away / n
            slope = undesirable_weight * beta * away * back
        grad["response"].append(np.full(len(y), slope / n))
        grad["mismatched"].append(np.zeros(len(policy["mismatched"][i])))
    return loss, grad


def apo_zero_unpaired(
    policy, ref, columns, previous=None, beta=0.1, desirable_weight=1.0, undesirable_weight=1.0
):
    n = len(policy["response"])
    loss, grad = 0.0, []
    for i in range(n):
        y = policy["response"][i]
        r = beta * (y.sum() - ref["response"][i].sum())
        if columns["label"][i] == 1:
            loss += desirable_weight * sigmoid(-r) / n
            slope = -desirable_weight * beta * sigmoid(r) * sigmoid(-r)
        else:
            loss += undesirable_weight * sigmoid(r) / n
            slope = undesirable_weight * beta * sigmoid(r) * sigmoid(-r)
        grad.append(np.full(len(y), slope / n))
    return loss, {"response": grad}
