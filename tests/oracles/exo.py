import math

from .pairs import average, log_ratios
from .scalars import sigmoid, softplus

HYPER = {"exo_pair": [{}, {"beta": 0.4, "label_smoothing": 0.1}]}
WORKED = [("exo_pair", {}, 2.572996455201, -0.1694058996879, 0.1694058996879)]


def exo_pair(policy, ref, columns, previous=None, beta=0.1, label_smoothing=1e-3):
    eps = label_smoothing

    def pair(i):
        w, y = log_ratios(policy, ref, i)
        z = beta * (w - y)
        q, not_q = sigmoid(z), sigmoid(-z)
        loss = q * (-softplus(-z) - math.log1p(-eps)) + not_q * (-softplus(z) - math.log(eps))
        slope = beta * q * not_q * (z - math.log((1 - eps) / eps))
        return loss, slope, -slope

    return average(policy, pair)
