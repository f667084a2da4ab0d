"""The density ratio t itself, and no exponent joined with another."""

import math

import numpy as np

SLOPES = {
    "js": lambda t: math.log(2 * t / (1 + t)),
    "forward_kl": lambda t: -1 / t,
    "reverse_kl": lambda t: math.log(t) + 1,
    "tv": lambda t: 0.5 if t > 1 else -0.5,
    "chi2": lambda t: 1 - 1 / t**2,
    "reverse_chi2": lambda t: 2 * (t - 1),
}
HYPER = {"f_dpg": [{"divergence": name} for name in SLOPES] + [{"decay": 0.3}]}
SURROGATES = ("f_dpg",)


def f_dpg(policy, ref, columns, previous=None, divergence="js", decay=0.9):
    def weighted(policy, columns):
        """(w, w f'(t)) of each response."""
        out = []
        for i, y in enumerate(policy["response"]):
            w = math.exp(y.sum() - float(columns["behavior_logp"][i]))
            t = math.exp(y.sum() - float(columns["target_logp"][i]))
            out.append((w, w * SLOPES[divergence](t)))
        return out

    now, n = weighted(policy, columns), len(policy["response"])
    b = -sum(x for _, x in now) / n
    if previous is not None:
        before = weighted(previous[0], previous[2])
        b = decay * -sum(x for _, x in before) / len(before) + (1 - decay) * b
    loss, grad = 0.0, []
    for (w, slope), y in zip(now, policy["response"], strict=True):
        loss += (slope + b * w) * y.sum() / n
        grad.append(np.full(len(y), (slope + b * w) / n))
    return loss, {"response": grad}
