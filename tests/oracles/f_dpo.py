import math

from .pairs import average, log_ratios
from .scalars import sigmoid, softplus

HYPER = {
    "f_dpo": [
        {},
        {"divergence": "alpha", "alpha": 0.3, "beta": 0.3},
        {"divergence": "forward_kl"},
        {"divergence": "js", "beta": 0.5},
        {"divergence": "reverse_kl"},
    ]
}
WORKED = [
    (
        "f_dpo",
        {"divergence": "reverse_kl"},
        0.6396589186224,
        -0.04725276956554,
        0.04725276956554,
    ),
    (
        "f_dpo",
        {"divergence": "forward_kl"},
        0.6446228270325,
        -0.02359473088622,
        0.07088248887254,
    ),
    ("f_dpo", {"divergence": "js"}, 0.667980592473, -0.01616778406449, 0.02917147711531),
    ("f_dpo", {"alpha": 0.3}, 0.6417226759537, -0.03839049776101, 0.05339995882142),
    ("f_dpo", {"alpha": 0.7}, 0.6436841776222, -0.02907810600547, 0.06280191207459),
]


def reward(d, divergence, alpha):
    """f'(e^d) and its slope in d."""
    if divergence == "reverse_kl":
        return d, 1.0
    if divergence == "js":
        return -softplus(-d), sigmoid(-d)
    if divergence == "forward_kl":
        return -math.exp(-d), math.exp(-d)
    return -math.exp(-alpha * d) / alpha, math.exp(-alpha * d)


def f_dpo(policy, ref, columns, previous=None, beta=0.1, divergence="alpha", alpha=0.5):
    def pair(i):
        (w, slope_w), (y, slope_l) = (
            reward(d, divergence, alpha) for d in log_ratios(policy, ref, i)
        )
        z = beta * (w - y)
        push = beta * sigmoid(-z)
        return softplus(-z), -push * slope_w, push * slope_l

    return average(policy, pair)
