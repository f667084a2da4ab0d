import numpy as np

from .scalars import sigmoid, softplus

HYPER = {
    "cpl": [{}, {"alpha": 0.4, "lam": 1.0}],
    "cpl_kl": [{}, {"alpha": 0.4, "lam": 1.0}],
}


def cpl_kl(policy, ref, columns, previous=None, alpha=0.1, lam=0.5):
    n = len(policy["chosen"])
    loss, grad = 0.0, {"chosen": [], "rejected": []}
    for i in range(n):
        w, y = policy["chosen"][i], policy["rejected"][i]
        a_w = alpha * (w.sum() - ref["chosen"][i].sum())
        a_l = alpha * (y.sum() - ref["rejected"][i].sum())
        loses = sigmoid(lam * a_l - a_w)
        loss += softplus(lam * a_l - a_w) / n
        grad["chosen"].append(np.full(len(w), -alpha * loses / n))
        grad["rejected"].append(np.full(len(y), lam * alpha * loses / n))
    return loss, grad


def cpl(policy, ref, columns, previous=None, alpha=0.1, lam=0.5):
    uniform = {row: [0 * y for y in policy[row]] for row in policy}
    return cpl_kl(policy, uniform, columns, alpha=alpha, lam=lam)
