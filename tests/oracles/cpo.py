from .pairs import add_nll, average
from .scalars import sigmoid, softplus

HYPER = {"cpo": [{}, {"beta": 0.3, "alpha": 0.5}, {"sft_reduction": "sum"}]}
WORKED = [
    ("cpo", {}, 3.067191724841, -0.2455121107626, 0.04551211076264),
    ("cpo", {"sft_reduction": "sum"}, 12.90719172484, -1.045512110763, 0.04551211076264),
]


def cpo(policy, ref, columns, previous=None, beta=0.1, alpha=1.0, sft_reduction="token_mean"):
    def pair(i):
        z = beta * (policy["chosen"][i].sum() - policy["rejected"][i].sum())
        return softplus(-z), -beta * sigmoid(-z), beta * sigmoid(-z)

    return add_nll(policy, *average(policy, pair), alpha, sft_reduction)
