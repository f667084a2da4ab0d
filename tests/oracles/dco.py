import math

import numpy as np

HYPER = {"dco": [{}, {"samples": 1.0}, {"samples": 2.5}, {"samples": 1024.0}]}


def dco(policy, ref, columns, previous=None, samples=16.0):
    n = len(policy["response"])
    loss, grad = 0.0, []
    for y in policy["response"]:
        p, miss = math.exp(y.sum()), -math.expm1(y.sum())
        hit = -math.expm1(samples * math.log(miss))
        loss -= math.log(hit) / n
        f = samples * miss ** (samples - 1) * p / hit
        grad.append(np.full(len(y), -f / n))
    return loss, {"response": grad}
