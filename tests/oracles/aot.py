import numpy as np

from .pairs import log_ratios
from .scalars import sigmoid, softplus

HYPER = {"aot": [{}, {"beta": 0.2}], "aot_unpaired": [{}, {"beta": 0.2}]}


def real(columns, n):
    return [i for i in range(n) if columns["weight"][i] > 0]


def aot(policy, ref, columns, previous=None, beta=0.01):
    n = len(policy["chosen"])
    kept = real(columns, n)
    u, v = (
        sorted((p["chosen"][i].sum() - p["rejected"][i].sum(), i) for i in kept)
        for p in (policy, ref)
    )
    loss, grad = 0.0, {row: [np.zeros(len(y)) for y in policy[row]] for row in policy}
    for (margin, i), (held, _) in zip(u, v, strict=True):
        z = beta * (margin - held)
        loss += softplus(-z) / len(kept)
        grad["chosen"][i] -= beta * sigmoid(-z) / len(kept)
        grad["rejected"][i] += beta * sigmoid(-z) / len(kept)
    return loss, grad


def aot_unpaired(policy, ref, columns, previous=None, beta=0.01):
    n = len(policy["chosen"])
    kept = real(columns, n)
    w, y = (sorted((log_ratios(policy, ref, i)[side], i) for i in kept) for side in (0, 1))
    loss, grad = 0.0, {row: [np.zeros(len(t)) for t in policy[row]] for row in policy}
    for (d_w, i), (d_l, j) in zip(w, y, strict=True):
        z = beta * (d_w - d_l)
        loss += softplus(-z) / len(kept)
        grad["chosen"][i] -= beta * sigmoid(-z) / len(kept)
        grad["rejected"][j] += beta * sigmoid(-z) / len(kept)
    return loss, grad
