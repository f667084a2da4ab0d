"""Eq. 6 to 8 and Code 6.1, gradients by hand."""

import math

import numpy as np

from .scalars import log, log1mexp, log_add, sigmoid, softplus

HYPER = {
    "slpo": [
        {},
        {"alpha": 0.7, "mass_shift": "paper"},
        {"alpha": 0.9, "temperature": 3.0},
    ]
}


def targets(rho_w, rho_l, alpha, mass_shift):
    if mass_shift == "repo":
        return log_add(rho_w, rho_l + log(alpha)), rho_l + log(1 - alpha)
    both = log_add(rho_w, rho_l)
    return both + log(alpha), both + log(1 - alpha)


def bernoulli(x, target, n):
    """KL of tempered Bernoullis and its derivative in x."""
    s = (x - log1mexp(x)) / n
    if target == -math.inf:
        kl, slope = softplus(s), sigmoid(s)
    else:
        t = (target - log1mexp(target)) / n
        q = sigmoid(t)
        kl = q * (t - s) + softplus(s) - softplus(t)
        slope = sigmoid(s) - q
    return kl, slope / n / -math.expm1(x)


def pair_split(x_w, x_l, w_w, w_l, n_w, n_l):
    (kl_w, g_w), (kl_l, g_l) = bernoulli(x_w, w_w, n_w), bernoulli(x_l, w_l, n_l)
    return 0.25 * (kl_w + kl_l), 0.25 * g_w, 0.25 * g_l


def pair_joint(x_w, x_l, w_w, w_l):
    p = [math.exp(x_w), math.exp(x_l), 1 - math.exp(x_w) - math.exp(x_l)]
    q = [math.exp(w_w), math.exp(w_l), 1 - math.exp(w_w) - math.exp(w_l)]
    kl = sum(b * math.log(b / a) for a, b in zip(p, q, strict=True) if b > 0)
    return kl, -q[0] + q[2] * p[0] / p[2], -q[1] + q[2] * p[1] / p[2]


def slpo(
    policy,
    ref,
    columns,
    previous=None,
    form="split",
    alpha=1.0,
    mass_shift="repo",
    temperature="length",
    complement="tree",
):
    n = len(policy["chosen"])
    total, grad = 0.0, {"chosen": [], "rejected": []}
    for i in range(n):
        w, y = policy["chosen"][i], policy["rejected"][i]
        w_w, w_l = targets(ref["chosen"][i].sum(), ref["rejected"][i].sum(), alpha, mass_shift)
        if form == "joint":
            loss, g_w, g_l = pair_joint(w.sum(), y.sum(), w_w, w_l)
        else:
            n_w = n_l = 1 if temperature is None else temperature
            if temperature == "length":
                n_w, n_l = len(w), len(y)
            loss, g_w, g_l = pair_split(w.sum(), y.sum(), w_w, w_l, n_w, n_l)
        total += loss / n
        grad["chosen"].append(np.full(len(w), g_w / n))
        grad["rejected"].append(np.full(len(y), g_l / n))
    return total, grad
