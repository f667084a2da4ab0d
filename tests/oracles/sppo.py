from .pairs import average, log_ratios

HYPER = {"sppo": [{}, {"beta": 0.1}], "sppo_hard": [{}, {"beta": 0.1}]}
WORKED = [("sppo_hard", {"beta": 0.1}, 39.65, -8.6, 9.2)]


def sppo(policy, ref, columns, previous=None, beta=1e-3):
    def pair(i):
        w, y = log_ratios(policy, ref, i)
        target = (columns["preference"][i] - 0.5) / beta
        return (w - target) ** 2 + (y + target) ** 2, 2 * (w - target), 2 * (y + target)

    return average(policy, pair)


def sppo_hard(policy, ref, columns, previous=None, beta=1e-3):
    wins = {"preference": [1.0] * len(policy["chosen"])}
    return sppo(policy, ref, wins, beta=beta)
