import math

from .pairs import add_nll, average
from .scalars import log1mexp, sigmoid, softplus

HYPER = {"orpo": [{}, {"lam": 1.0}]}
WORKED = [("orpo", {}, 2.557383016666, -0.2136101010357, 0.0102597571343)]


def orpo(policy, ref, columns, previous=None, lam=0.1):
    def pair(i):
        w, y = policy["chosen"][i], policy["rejected"][i]
        a_w, a_l = w.mean(), y.mean()
        z = a_w - log1mexp(a_w) - (a_l - log1mexp(a_l))
        push = lam * sigmoid(-z)
        # d/da of the log-odds is 1 / (1 - e^a).
        slope_w, slope_l = (-1 / math.expm1(a) for a in (a_w, a_l))
        return lam * softplus(-z), -push * slope_w / len(w), push * slope_l / len(y)

    return add_nll(policy, *average(policy, pair), 1.0, "token_mean")
