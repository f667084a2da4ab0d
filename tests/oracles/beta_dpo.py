"""Drawing without replacement by log-weights plus Gumbel numbers, which are given."""

import math
import statistics

import numpy as np

from .scalars import sigmoid, softplus

HYPER = {
    "beta_dpo": [{}, {"beta": 0.5, "alpha": 0.2, "rho": 0.5}, {"rho": 0.0, "decay": 0.5}],
}
SURROGATES = ("beta_dpo",)


def beta_dpo(policy, ref, columns, previous=None, beta=0.1, alpha=0.6, rho=0.2, decay=0.9):
    def gaps(policy, ref, columns):
        d = {
            row: [a.sum() - b.sum() for a, b in zip(policy[row], ref[row], strict=True)]
            for row in policy
        }
        return [float(w - y) for w, y in zip(d["chosen"], d["rejected"], strict=True)]

    mean = std = 0.0
    for batch in (previous, (policy, ref, columns)):
        if batch is not None:
            h = gaps(*batch)
            mean = decay * mean + (1 - decay) * statistics.mean(h)
            std = decay * std + (1 - decay) * statistics.stdev(h)
    score = [
        -((h[i] - mean) ** 2) / (2 * std**2) + float(columns["gumbel"][i]) for i in range(len(h))
    ]
    k = math.floor((1 - rho) * len(h) + 1e-9)
    kept = sorted(range(len(h)), key=score.__getitem__)[-k:]
    used = max(1e-3, beta * (1 + alpha * (statistics.mean(h[i] for i in kept) - mean)))
    loss, grad = 0.0, {"chosen": [], "rejected": []}
    for i in range(len(h)):
        slope = -used * sigmoid(-used * h[i]) / k if i in kept else 0.0
        loss += softplus(-used * h[i]) / k if i in kept else 0.0
        grad["chosen"].append(np.full(len(policy["chosen"][i]), slope))
        grad["rejected"].append(np.full(len(policy["rejected"][i]), -slope))
    return loss, grad
