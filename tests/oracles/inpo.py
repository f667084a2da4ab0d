from .pairs import average

HYPER = {"inpo": [{}, {"eta": 0.3, "ratio": 0.8}, {"eta": 0.1, "ratio": 0.0}, {"ratio": 1.0}]}


def inpo(policy, ref, columns, previous=None, eta=0.005, ratio=1 / 3):
    def pair(i):
        delta_policy, delta_ref, delta_start = (
            q["chosen"][i].sum() - q["rejected"][i].sum() for q in (policy, ref, columns["start"])
        )
        tau = ratio * eta
        h = delta_policy - tau / eta * delta_ref - (eta - tau) / eta * delta_start
        residual = h - 1 / (2 * eta)
        return residual**2, 2 * residual, -2 * residual

    return average(policy, pair)
