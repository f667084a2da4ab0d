from .pairs import average, log_ratios
from .scalars import sigmoid, softplus

HYPER = {"r_dpo": [{}, {"beta": 0.3, "alpha": 0.5}]}
WORKED = [("r_dpo", {}, 0.6491593390256, -0.04775151752082, 0.04775151752082)]


def r_dpo(policy, ref, columns, previous=None, beta=0.1, alpha=0.01):
    def pair(i):
        w, y = log_ratios(policy, ref, i)
        longer = len(policy["chosen"][i]) - len(policy["rejected"][i])
        z = beta * (w - y) + alpha * longer
        return softplus(-z), -beta * sigmoid(-z), beta * sigmoid(-z)

    return average(policy, pair)
