"""The vocabulary has two tokens, as in `tdpo`; the masks come from layers drawn at random."""

import numpy as np

from .scalars import sigmoid, softplus

HYPER = {"sparse_po": [{}, {"beta": 0.8}]}
UNDIRECTED = ("sparse_po",)  # no token moves whose mask is 0


def mask_of(layers):
    """[N, T] -> [T], token by token."""
    n, length = layers.shape
    out = np.zeros(length)
    for layer in layers:
        z = layer - layer.mean()
        z = z / z.std() if z.any() else z
        low, high = z.min(), z.max()
        for t in range(length):
            out[t] += (1.0 if high == low else (z[t] - low) / (high - low)) / n
    return out


def side(y, y_ref, mask):
    """u + d of a response, and its slope in each token's log-probability."""
    total, slope = 0.0, np.zeros(len(y))
    for t, (a, b, m) in enumerate(zip(y, y_ref, mask, strict=True)):
        p, q, p_ref, q_ref = np.exp(a), -np.expm1(a), np.exp(b), -np.expm1(b)
        d = p_ref * (a - b) + q_ref * (np.log(q) - np.log(q_ref))
        total += m * (a - b) - m * d
        slope[t] = m - m * (p_ref - q_ref * p / q)
    return total, slope


def sparse_po(policy, ref, columns, previous=None, beta=0.1):
    n = len(policy["chosen"])
    loss, grad = 0.0, {"chosen": [], "rejected": []}
    for i in range(n):
        (w, dw), (y, dy) = (
            side(policy[r][i], ref[r][i], mask_of(columns["layers"][r][i]))
            for r in ("chosen", "rejected")
        )
        loss += softplus(-beta * (w - y)) / n
        slope = -beta * sigmoid(-beta * (w - y)) / n
        grad["chosen"].append(slope * dw)
        grad["rejected"].append(-slope * dy)
    return loss, grad
