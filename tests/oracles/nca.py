from .pairs import average, log_ratios
from .scalars import sigmoid, softplus

HYPER = {"nca_pair": [{}, {"beta": 0.3}]}
WORKED = [("nca_pair", {"beta": 0.1}, 1.359812916937, -0.02237607135004, 0.024500066656)]


def nca_pair(policy, ref, columns, previous=None, beta=0.01):
    def pair(i):
        w, y = (beta * d for d in log_ratios(policy, ref, i))
        loss = softplus(-w) + softplus(w) / 2 + softplus(y) / 2
        return loss, beta * (sigmoid(w) / 2 - sigmoid(-w)), beta * sigmoid(y) / 2

    return average(policy, pair)
