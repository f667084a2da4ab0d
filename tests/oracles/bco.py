import numpy as np

from .scalars import sigmoid, softplus

RUNNING = {"center": "pooled", "average": "cumulative"}
HYPER = {
    "bco": [{}, {"beta": 0.5, "decay": 0.5}, RUNNING, {"center": "pooled"}],
    "bco_udm": [{}, {"denominator": "weights"}, RUNNING],
    "bco_pair": [{}, {"beta": 0.5, "decay": 0.0}, {"average": "cumulative"}],
}
SURROGATES = ("bco", "bco_udm", "bco_pair")


def mean(x):
    return sum(x) / len(x)


def shift(batches, center, average, decay):
    """Halfway between the moving averages; a batch is (undesirable, desirable) rewards."""
    if center == "pooled":
        batches = [(bad + good,) for bad, good in batches]
    means = []
    for groups in zip(*batches, strict=True):
        groups = [g for g in groups if g]
        if average == "cumulative" and groups:
            means.append(mean([r for g in groups for r in g]))
        elif groups:
            now = mean(groups[0])
            for g in groups[1:]:
                now = decay * now + (1 - decay) * mean(g)
            means.append(now)
    return mean(means)


def bco_udm(
    policy,
    ref,
    columns,
    previous=None,
    beta=0.1,
    center="class_balanced",
    average="ema",
    decay=0.9,
    denominator="examples",
    matched=True,
):
    def rewards(policy, ref):
        n = len(policy["response"])
        return [beta * (policy["response"][i].sum() - ref["response"][i].sum()) for i in range(n)]

    def split(policy, ref, columns):
        r = rewards(policy, ref)
        return [[r[i] for i in range(len(r)) if columns["label"][i] == c] for c in (0, 1)]

    batches = [b for b in (previous, (policy, ref, columns)) if b is not None]
    delta = shift([split(*b) for b in batches], center, average, decay)
    loss, grad, total = 0.0, [], 0.0
    for i, r in enumerate(rewards(policy, ref)):
        if columns["label"][i] == 1:
            omega = 1.0
            loss += softplus(delta - r)
            slope = -beta * sigmoid(delta - r)
        else:
            omega = min(max(float(columns["density_ratio"][i]), 0.5), 10.0) if matched else 1.0
            loss += omega * softplus(r - delta)
            slope = omega * beta * sigmoid(r - delta)
        total += omega if denominator == "weights" else 1.0
        grad.append(np.full(len(policy["response"][i]), slope))
    return loss / total, {"response": [g / total for g in grad]}


def bco(*args, **hyper):
    return bco_udm(*args, **hyper, matched=False)


def bco_pair(policy, ref, columns, previous=None, beta=0.1, average="ema", decay=0.9):
    def split(policy, ref, columns):
        return [
            [beta * (policy[row][i].sum() - ref[row][i].sum()) for i in range(len(policy[row]))]
            for row in ("rejected", "chosen")
        ]

    batches = [b for b in (previous, (policy, ref, columns)) if b is not None]
    delta = shift([split(*b) for b in batches], "class_balanced", average, decay)
    rejected, chosen = split(policy, ref, columns)
    n, loss, grad = len(chosen), 0.0, {"chosen": [], "rejected": []}
    for i in range(n):
        loss += (softplus(delta - chosen[i]) + softplus(rejected[i] - delta)) / n
        w, y = policy["chosen"][i], policy["rejected"][i]
        grad["chosen"].append(np.full(len(w), -beta * sigmoid(delta - chosen[i]) / n))
        grad["rejected"].append(np.full(len(y), beta * sigmoid(rejected[i] - delta) / n))
    return loss, grad
