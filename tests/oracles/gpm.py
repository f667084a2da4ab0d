import numpy as np

from .bradley_terry import logits
from .scalars import sigmoid, softplus

HYPER = {
    "gpm": [
        {},
        {"dimensions": 2, "tau": 0.5},
        {"loss": "regression"},
        {"normalize": False, "tau": 2.0},
        {"normalize": False, "tau": 3.0, "dimensions": 2, "loss": "regression"},
    ]
}
UNDIRECTED = ("gpm",)


def gpm(
    policy, ref, columns, previous=None, dimensions=4, tau=0.1, normalize=True, loss="logistic"
):
    skew = np.zeros((dimensions, dimensions))  # R of the paper: score = <R v_w, v_l>
    for b in range(0, dimensions, 2):
        skew[b, b + 1], skew[b + 1, b] = -1.0, 1.0
    n = len(policy["chosen"])
    total, grad = 0.0, {"chosen": [], "rejected": []}
    for i in range(n):
        vectors, sizes, chains = [], [], []
        for row in ("chosen", "rejected"):
            u, chain = logits(policy[row][i])
            padded = np.zeros(dimensions)
            padded[: min(len(u), dimensions)] = u[:dimensions]
            size = np.sqrt(padded @ padded) if normalize else 1.0
            vectors.append(padded / size)
            sizes.append(size)
            chains.append(chain)
        w, y = vectors
        score = (skew @ w) @ y
        z = score / tau
        value = softplus(-z) if loss == "logistic" else 0.5 * (z - 10.0) ** 2
        slope = (-sigmoid(-z) if loss == "logistic" else z - 10.0) / tau
        total += value / n
        for row, v, towards, size, chain in zip(
            grad, vectors, (skew.T @ y, skew @ w), sizes, chains, strict=True
        ):
            by_u = (towards - score * v) / size if normalize else towards
            tokens = np.zeros(len(chain))
            k = min(len(chain), dimensions)
            tokens[:k] = slope * by_u[:k] * chain[:k] / n
            grad[row].append(tokens)
    return total, grad
