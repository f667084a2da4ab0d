from .pairs import average, log_ratios
from .scalars import sigmoid, softplus

HYPER = {"spce": [{}, {"beta": 0.4}]}


def spce(policy, ref, columns, previous=None, beta=0.1):
    def pair(i):
        w, y = log_ratios(policy, ref, i)
        z, p = beta * (w - y), float(columns["preference"][i])
        slope = beta * ((1 - p) * sigmoid(z) - p * sigmoid(-z))
        return p * softplus(-z) + (1 - p) * softplus(z), slope, -slope

    return average(policy, pair)
