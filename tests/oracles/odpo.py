import math

from .pairs import average, log_ratios
from .scalars import sigmoid, softplus

HYPER = {"odpo": [{}, {"beta": 0.3, "alpha": 0.5}, {"scale": "difference"}]}


def odpo(policy, ref, columns, previous=None, beta=0.1, alpha=1.0, scale="log"):
    def pair(i):
        w, y = log_ratios(policy, ref, i)
        gap = float(columns["score_chosen"][i]) - float(columns["score_rejected"][i])
        z = beta * (w - y) - alpha * (math.log(gap) if scale == "log" else gap)
        return softplus(-z), -beta * sigmoid(-z), beta * sigmoid(-z)

    return average(policy, pair)
