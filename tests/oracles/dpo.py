import numpy as np

from .scalars import sigmoid, softplus

HYPER = {"dpo": [{}, {"beta": 0.5, "label_smoothing": 0.2}]}
WORKED = [
    ("dpo", {}, 0.6396589186224, -0.04725276956554, 0.04725276956554),
    ("dpo", {"label_smoothing": 0.1}, 0.6506589186224, -0.03725276956554, 0.03725276956554),
]


def dpo(policy, ref, columns, previous=None, beta=0.1, label_smoothing=0.0):
    n = len(policy["chosen"])
    loss, grad = 0.0, {"chosen": [], "rejected": []}
    for i in range(n):
        w, y = policy["chosen"][i], policy["rejected"][i]
        h = w.sum() - ref["chosen"][i].sum() - (y.sum() - ref["rejected"][i].sum())
        loss += (1 - label_smoothing) * softplus(-beta * h) / n
        loss += label_smoothing * softplus(beta * h) / n
        slope = beta * (label_smoothing * sigmoid(beta * h))
        slope -= beta * (1 - label_smoothing) * sigmoid(-beta * h)
        grad["chosen"].append(np.full(len(w), slope / n))
        grad["rejected"].append(np.full(len(y), -slope / n))
    return loss, grad
