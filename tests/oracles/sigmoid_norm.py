from .pairs import average, log_ratios
from .scalars import sigmoid, softplus

HYPER = {"sigmoid_norm": [{}, {"beta": 0.5}]}
WORKED = [("sigmoid_norm", {}, 0.3171238143523, -0.2717594170926, 0.1941138693519)]


def sigmoid_norm(policy, ref, columns, previous=None, beta=5.0):
    def pair(i):
        w, y = log_ratios(policy, ref, i)
        n_w, n_l = len(policy["chosen"][i]), len(policy["rejected"][i])
        z = beta * (w / n_w - y / n_l)
        return softplus(-z), -beta * sigmoid(-z) / n_w, beta * sigmoid(-z) / n_l

    return average(policy, pair)
