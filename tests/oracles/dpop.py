from .pairs import average, log_ratios
from .scalars import sigmoid, softplus

HYPER = {"dpop": [{}, {"beta": 0.1, "lam": 2.0}]}


def dpop(policy, ref, columns, previous=None, beta=0.3, lam=50.0):
    def pair(i):
        w, y = log_ratios(policy, ref, i)
        fell = w < 0
        z = beta * (w - y + (lam * w if fell else 0.0))
        push = beta * sigmoid(-z)
        return softplus(-z), -push * (1 + lam if fell else 1), push

    return average(policy, pair)
