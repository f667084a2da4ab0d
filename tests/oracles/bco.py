import numpy as np

from .scalars import sigmoid, softplus

HYPER = {
    "bco": [{}, {"beta": 0.5, "decay": 0.5}],
    "bco_pair": [{}, {"beta": 0.5, "decay": 0.0}],
}
SURROGATES = ("bco", "bco_pair")


def shift(classes, decay):
    """Halfway between the two moving averages; `classes` is ((undesirable, desirable), ...)."""
    mean = [None, None]
    for batch in classes:
        for c in (0, 1):
            if batch[c]:
                now = sum(batch[c]) / len(batch[c])
                mean[c] = now if mean[c] is None else decay * mean[c] + (1 - decay) * now
    known = [m for m in mean if m is not None]
    return sum(known) / len(known)


def bco(policy, ref, columns, previous=None, beta=0.1, decay=0.9):
    def rewards(policy, ref):
        n = len(policy["response"])
        return [beta * (policy["response"][i].sum() - ref["response"][i].sum()) for i in range(n)]

    def split(policy, ref, columns):
        r = rewards(policy, ref)
        return [[r[i] for i in range(len(r)) if columns["label"][i] == c] for c in (0, 1)]

    batches = [b for b in (previous, (policy, ref, columns)) if b is not None]
    delta = shift([split(*b) for b in batches], decay)
    n, loss, grad = len(policy["response"]), 0.0, []
    for i, r in enumerate(rewards(policy, ref)):
        if columns["label"][i] == 1:
            loss += softplus(delta - r) / n
            slope = -beta * sigmoid(delta - r)
        else:
            loss += softplus(r - delta) / n
            slope = beta * sigmoid(r - delta)
        grad.append(np.full(len(policy["response"][i]), slope / n))
    return loss, {"response": grad}


def bco_pair(policy, ref, columns, previous=None, beta=0.1, decay=0.9):
    def split(policy, ref, columns):
        return [
            [beta * (policy[row][i].sum() - ref[row][i].sum()) for i in range(len(policy[row]))]
            for row in ("rejected", "chosen")
        ]

    batches = [b for b in (previous, (policy, ref, columns)) if b is not None]
    delta = shift([split(*b) for b in batches], decay)
    rejected, chosen = split(policy, ref, columns)
    n, loss, grad = len(chosen), 0.0, {"chosen": [], "rejected": []}
    for i in range(n):
        loss += (softplus(delta - chosen[i]) + softplus(rejected[i] - delta)) / n
        w, y = policy["chosen"][i], policy["rejected"][i]
        grad["chosen"].append(np.full(len(w), -beta * sigmoid(delta - chosen[i]) / n))
        grad["rejected"].append(np.full(len(y), beta * sigmoid(rejected[i] - delta) / n))
    return loss, grad
