import math

import numpy as np

from .scalars import log1mexp

HYPER = {"dco": [{}, {"samples": 1.0}, {"samples": 2.5}, {"samples": 1024.0}]}


def dco(policy, ref, columns, previous=None, samples=16.0):
    n = len(policy["response"])
    loss, grad = 0.0, []
    for y in policy["response"]:
        if y.sum() < -40:  # 1 - (1 - p)^N is N p
            loss -= (y.sum() + math.log(samples)) / n
            grad.append(np.full(len(y), -1 / n))
            continue
        log_miss = log1mexp(y.sum())
        hit = -math.expm1(samples * log_miss)
        loss -= log1mexp(samples * log_miss) / n
        f = samples * math.exp((samples - 1) * log_miss + y.sum()) / hit
        grad.append(np.full(len(y), -f / n))
    return loss, {"response": grad}
