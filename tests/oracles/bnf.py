"""The stop-gradient surrogate; the test of its derivation uses the whole vocabulary."""

import numpy as np

HYPER = {"bnf": [{}], "bnf_pair": [{}], "bnf_pair_batch_min": [{}]}
SURROGATES = ("bnf", "bnf_pair", "bnf_pair_batch_min")


def half(policy, ref, sign, n, length=None):
    length = length or len(policy)
    loss, grad = 0.0, np.zeros(len(policy))
    for t in range(len(policy)):
        p, r = np.exp(policy[t]), np.exp(ref[t])
        # (target - p) / (1 - p) with target = min(p / r, 1); 1 - p from expm1 for p near 1.
        w = 1.0 if p >= r else p * np.expm1(ref[t]) / (r * np.expm1(policy[t]))
        loss -= sign * w * policy[t] / length / n
        grad[t] = -sign * w / length / n
    return loss, grad


def bnf(policy, ref, columns, previous=None):
    n = len(policy["response"])
    halves = [
        half(policy["response"][i], ref["response"][i], 1 if columns["label"][i] == 1 else -1, n)
        for i in range(n)
    ]
    return sum(loss for loss, _ in halves), {"response": [g for _, g in halves]}


def bnf_pair(policy, ref, columns, previous=None, length=None):
    n = len(policy["chosen"])
    total, grad = 0.0, {}
    for row, sign in (("chosen", 1), ("rejected", -1)):
        halves = [half(policy[row][i], ref[row][i], sign, n, length) for i in range(n)]
        total += sum(loss for loss, _ in halves)
        grad[row] = [g for _, g in halves]
    return total, grad


def bnf_pair_batch_min(policy, ref, columns, previous=None):
    shortest = min(len(y) for row in policy.values() for y in row)
    return bnf_pair(policy, ref, columns, length=shortest)
