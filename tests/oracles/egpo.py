import numpy as np

HYPER = {"egpo": [{}, {"beta": 0.5, "reduction": "sum"}]}


def egpo(policy, ref, columns, previous=None, beta=0.1, reduction="mean"):
    n = len(policy["chosen"])
    loss, grad = 0.0, {"chosen": [], "rejected": []}
    for i in range(n):
        w, y = policy["chosen"][i], policy["rejected"][i]
        n_w, n_l = (len(w), len(y)) if reduction == "mean" else (1, 1)
        h = (w.sum() - ref["chosen"][i].sum()) / n_w - (y.sum() - ref["rejected"][i].sum()) / n_l
        error = h - float(columns["preference_gap"][i]) / beta
        loss += error**2 / n
        grad["chosen"].append(np.full(len(w), 2 * error / n_w / n))
        grad["rejected"].append(np.full(len(y), -2 * error / n_l / n))
    return loss, grad
