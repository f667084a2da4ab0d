from .pairs import average, log_ratios
from .scalars import sigmoid, softplus

HYPER = {"robust_dpo": [{}, {"beta": 0.5, "label_smoothing": 0.3}]}
WORKED = [("robust_dpo", {}, 0.6259089186224, -0.05975276956554, 0.05975276956554)]


def robust_dpo(policy, ref, columns, previous=None, beta=0.1, label_smoothing=0.1):
    eps = label_smoothing

    def pair(i):
        w, y = log_ratios(policy, ref, i)
        z = beta * (w - y)
        loss = ((1 - eps) * softplus(-z) - eps * softplus(z)) / (1 - 2 * eps)
        slope = -beta * ((1 - eps) * sigmoid(-z) + eps * sigmoid(z)) / (1 - 2 * eps)
        return loss, slope, -slope

    return average(policy, pair)
