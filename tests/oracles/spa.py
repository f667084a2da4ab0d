import math

import numpy as np

from .scalars import sigmoid, softplus

HYPER = {"spa": [{}, {"beta": 0.6, "label_smoothing": 0.3}, {"warmup": 2}]}


def spa(policy, ref, columns, previous=None, beta=0.1, label_smoothing=0.1, warmup=0):
    def margins(policy, ref, columns):
        d = {
            row: [a.sum() - b.sum() for a, b in zip(policy[row], ref[row], strict=True)]
            for row in policy
        }
        return [beta * (w - y) for w, y in zip(d["chosen"], d["rejected"], strict=True)]

    batches = [b for b in (previous, (policy, ref, columns)) if b is not None]
    means = sorted(sum(margins(*b)) / len(margins(*b)) for b in batches[-50:])
    d = math.floor(0.1 * len(means))
    tau = (means[d] + means[min(d + 1, len(means) - 1)]) / 2
    n, loss, grad = len(policy["chosen"]), 0.0, {"chosen": [], "rejected": []}
    for i, m in enumerate(margins(policy, ref, columns)):
        eps = label_smoothing if m <= tau and len(batches) > warmup else 0.0
        loss += ((1 - eps) * softplus(-m) + eps * softplus(m)) / n
        slope = beta * (eps * sigmoid(m) - (1 - eps) * sigmoid(-m))
        grad["chosen"].append(np.full(len(policy["chosen"][i]), slope / n))
        grad["rejected"].append(np.full(len(policy["rejected"][i]), -slope / n))
    return loss, grad
