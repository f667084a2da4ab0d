"""Two tokens whose embeddings are orthogonal, so that the distance is 1 - p."""

import numpy as np

HYPER = {"emo": [{}, {"scale": "distance"}]}
SURROGATES = ("emo",)


def emo(policy, ref, columns, previous=None, scale="nll"):
    tokens = sum(len(y) for y in policy["response"])
    loss, grad = 0.0, []
    for y in policy["response"]:
        nll, d, p = -y, -np.expm1(y), np.exp(y)
        if scale == "nll":
            loss += nll.sum() / tokens
            grad.append(0.5 * (-1 - nll / d * p) / tokens)
        else:
            loss += 2 * d.sum() / tokens
            grad.append((-p - d / nll) / tokens)
    return loss, {"response": grad}
