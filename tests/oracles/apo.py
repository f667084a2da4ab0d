from .pairs import average, log_ratios
from .scalars import sigmoid

HYPER = {"apo_zero": [{}, {"beta": 0.5}], "apo_down": [{}, {"beta": 0.5}]}
WORKED = [("apo_zero", {}, 0.9725084754536, -0.02496939999307, 0.02499000266606)]
UNDIRECTED = ("apo_down",)


def apo_zero(policy, ref, columns, previous=None, beta=0.1):
    def pair(i):
        w, y = (beta * d for d in log_ratios(policy, ref, i))
        loss = sigmoid(-w) + sigmoid(y)
        return loss, -beta * sigmoid(w) * sigmoid(-w), beta * sigmoid(y) * sigmoid(-y)

    return average(policy, pair)


def apo_down(policy, ref, columns, previous=None, beta=0.1):
    def pair(i):
        w, y = (beta * d for d in log_ratios(policy, ref, i))
        ahead = beta * sigmoid(w - y) * sigmoid(y - w)
        return sigmoid(w) + sigmoid(y - w), beta * sigmoid(w) * sigmoid(-w) - ahead, ahead

    return average(policy, pair)
