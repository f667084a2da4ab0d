from .pairs import average, log_ratios
from .scalars import sigmoid, softplus

HYPER = {"flex_dpo": [{}, {"beta_chosen": 0.3, "beta_rejected": 0.05}]}


def flex_dpo(policy, ref, columns, previous=None, beta_chosen=0.1, beta_rejected=0.08):
    def pair(i):
        w, y = log_ratios(policy, ref, i)
        z = beta_chosen * w - beta_rejected * y
        return softplus(-z), -beta_chosen * sigmoid(-z), beta_rejected * sigmoid(-z)

    return average(policy, pair)
