import numpy as np

HYPER = {"hypo_kl": [{}, {"lam": 0.5}]}
SURROGATES = ("hypo_kl",)


def hypo_kl(policy, ref, columns, previous=None, lam=1e-4):
    n = len(policy["response"])
    loss, grad = 0.0, []
    for i, y in enumerate(policy["response"]):
        d = y.sum() - ref["response"][i].sum() - float(columns["baseline"][i])
        loss += lam * d * y.sum() / n
        grad.append(np.full(len(y), lam * d / n))
    return loss, {"response": grad}
