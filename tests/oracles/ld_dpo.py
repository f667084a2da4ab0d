import numpy as np

from .pairs import average
from .scalars import sigmoid, softplus

HYPER = {
    "ld_dpo": [{}, {"beta": 0.4, "alpha": 0.0}, {"desensitize": "policy", "alpha": 0.3}],
}


def ld_dpo(policy, ref, columns, previous=None, beta=0.1, alpha=0.5, desensitize="both"):
    def pair(i):
        n = min(len(policy["chosen"][i]), len(policy["rejected"][i]))
        counts = {r: np.array([1.0] * n + [alpha] * (len(policy[r][i]) - n)) for r in policy}

        def reward(row):
            held = ref[row][i] * (counts[row] if desensitize == "both" else 1.0)
            return (policy[row][i] * counts[row]).sum() - held.sum()

        z = beta * (reward("chosen") - reward("rejected"))
        push = beta * sigmoid(-z)
        return softplus(-z), -push * counts["chosen"], push * counts["rejected"]

    return average(policy, pair)
