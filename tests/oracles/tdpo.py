"""The vocabulary has two tokens, so the log-probability of one gives the whole distribution."""

import numpy as np

from .scalars import sigmoid, softplus

HYPER = {"tdpo1": [{}, {"beta": 0.5}], "tdpo2": [{}, {"beta": 0.5, "alpha": 0.9}]}
SURROGATES = ("tdpo2",)


def kl(y, y_ref):
    """KL(ref || policy) summed over tokens, and its slope in each token's log-probability."""
    p, q, p_ref, q_ref = np.exp(y), -np.expm1(y), np.exp(y_ref), -np.expm1(y_ref)
    terms = p_ref * (y_ref - y) + q_ref * (np.log(q_ref) - np.log(q))
    return terms.sum(), (p - p_ref) / q


def tdpo(policy, ref, beta, of_rejected, of_chosen, chosen_slope):
    n = len(policy["chosen"])
    loss, grad = 0.0, {"chosen": [], "rejected": []}
    for i in range(n):
        w, y, w_ref, y_ref = (m[r][i] for m in (policy, ref) for r in ("chosen", "rejected"))
        (k_w, dk_w), (k_y, dk_y) = kl(w, w_ref), kl(y, y_ref)
        z = w.sum() - w_ref.sum() - (y.sum() - y_ref.sum()) - of_rejected * k_y + of_chosen * k_w
        loss += softplus(-beta * z) / n
        slope = -beta * sigmoid(-beta * z) / n
        grad["chosen"].append(slope * (1 + chosen_slope * dk_w))
        grad["rejected"].append(slope * (-1 - of_rejected * dk_y))
    return loss, grad


def tdpo1(policy, ref, columns, previous=None, beta=0.1):
    return tdpo(policy, ref, beta, 1.0, 1.0, 1.0)


def tdpo2(policy, ref, columns, previous=None, beta=0.1, alpha=0.5):
    return tdpo(policy, ref, beta, alpha, alpha, 0.0)
