import numpy as np

from .scalars import sigmoid, softplus

HYPER = {"npo": [{}, {"beta": 0.7}]}


def npo(policy, ref, columns, previous=None, beta=0.1):
    n = len(policy["response"])
    loss, grad = 0.0, []
    for i in range(n):
        y = policy["response"][i]
        d = y.sum() - ref["response"][i].sum()
        loss += 2 / beta * softplus(beta * d) / n
        grad.append(np.full(len(y), 2 * sigmoid(beta * d) / n))
    return loss, {"response": grad}
