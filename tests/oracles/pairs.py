"""What the oracles of paired objectives share."""

import numpy as np


def log_ratios(policy, ref, i):
    """log pi/pi_ref of the chosen and of the rejected response of example i."""
    return [policy[row][i].sum() - ref[row][i].sum() for row in ("chosen", "rejected")]


def average(policy, pair):
    """`pair(i)` is (loss, slope of the chosen tokens, slope of the rejected tokens)."""
    n = len(policy["chosen"])
    loss, grad = 0.0, {"chosen": [], "rejected": []}
    for i in range(n):
        value, *slopes = pair(i)
        loss += value / n
        for row, slope in zip(grad, slopes, strict=True):
            grad[row].append(np.ones(len(policy[row][i])) * slope / n)
    return loss, grad


def add_nll(policy, loss, grad, weight, reduction):
    """A loss and its gradient, with `weight` times minus the likelihood of the chosen added."""
    chosen = policy["chosen"]
    tokens = sum(len(y) for y in chosen)
    added = []
    for y, g in zip(chosen, grad["chosen"], strict=True):
        count = {"mean": len(y) * len(chosen), "sum": len(chosen), "token_mean": tokens}[reduction]
        loss -= weight * y.sum() / count
        added.append(g - weight / count)
    return loss, grad | {"chosen": added}
