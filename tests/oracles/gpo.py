import numpy as np

HYPER = {"gpo": [{}, {"beta": 0.1}]}
UNDIRECTED = ("gpo",)


def gpo(policy, ref, columns, previous=None, beta=1e-3):
    n = len(policy["chosen"])
    loss, grad = 0.0, {"chosen": [], "rejected": []}
    for row in grad:
        for i in range(n):
            y = policy[row][i]
            error = y.sum() - ref[row][i].sum() - float(columns[f"score_{row}"][i]) / beta
            loss += 0.5 * error**2 / n
            grad[row].append(np.full(len(y), error / n))
    return loss, grad
