import math

from .pairs import average, log_ratios
from .scalars import sigmoid, softplus

HYPER = {"discopop": [{}, {"beta": 0.1, "tau": 0.5}]}
WORKED = [("discopop", {}, 0.8764431246292, 0.01097238901158, -0.01097238901158)]
UNDIRECTED = ("discopop",)


def discopop(policy, ref, columns, previous=None, beta=0.05, tau=0.05):
    def pair(i):
        w, y = log_ratios(policy, ref, i)
        z = beta * (w - y)
        m, e = sigmoid(z / tau), math.exp(-z)
        loss = sigmoid(-z / tau) * softplus(-z) + m * e
        slope = m * sigmoid(-z / tau) / tau * (e - softplus(-z))
        slope -= sigmoid(-z / tau) * sigmoid(-z) + m * e
        return loss, beta * slope, -beta * slope

    return average(policy, pair)
