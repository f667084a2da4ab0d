import numpy as np

from .scalars import sigmoid, softplus

HYPER = {"sampo": [{}, {"beta": 0.5}]}


def sampo(policy, ref, columns, previous=None, beta=0.1):
    n_pairs = len(policy["chosen"])
    loss, grad = 0.0, {"chosen": [], "rejected": []}
    for i in range(n_pairs):
        n = min(len(policy["chosen"][i]), len(policy["rejected"][i]))
        h, kept = 0.0, {}
        for row, sign in (("chosen", 1), ("rejected", -1)):
            y, y_ref = policy[row][i], ref[row][i]
            draws = list(columns["uniform"][i][: len(y)])
            kept[row] = sorted(range(len(y)), key=draws.__getitem__)[:n]
            h += sign * sum(y[t] - y_ref[t] for t in kept[row])
        loss += softplus(-beta * h) / n_pairs
        for row, sign in (("chosen", -1), ("rejected", 1)):
            g = np.zeros(len(policy[row][i]))
            g[kept[row]] = sign * beta * sigmoid(-beta * h) / n_pairs
            grad[row].append(g)
    return loss, grad
