import numpy as np

from .scalars import sigmoid, softplus

HYPER = {"d2o": [{}, {"beta": 0.5, "alpha": 0.2}]}


def d2o(policy, ref, columns, previous=None, beta=0.1, alpha=0.1):
    samples = [row for row in policy if row != "rejected"]
    n = len(policy["rejected"])
    loss, grad = 0.0, {row: [] for row in policy}
    for i in range(n):
        u = -alpha * (policy["rejected"][i].sum() - ref["rejected"][i].sum())
        for row in samples:
            u += beta / len(samples) * (policy[row][i].sum() - ref[row][i].sum())
        loss += softplus(-u) / n
        for row in policy:
            slope = alpha if row == "rejected" else -beta / len(samples)
            grad[row].append(np.full(len(policy[row][i]), slope * sigmoid(-u) / n))
    return loss, grad
