from .pairs import average, log_ratios

HYPER = {
    "hinge": [{}, {"beta": 0.3}],
    "slic": [{}, {"delta": 3.0, "lam": 0.0}, {"delta": 9.0, "lam": 0.5}],
}
WORKED = [
    ("hinge", {"beta": 0.1}, 0.89, -0.1, 0.1),
    ("slic", {"delta": 3.0}, 2.43, -1.1, 1.0),
    ("slic", {"delta": 3.0, "lam": 0.0}, 1.2, -1.0, 1.0),
]
UNDIRECTED = ("slic",)


def hinge(policy, ref, columns, previous=None, beta=0.05):
    def pair(i):
        w, y = log_ratios(policy, ref, i)
        short = 1 - beta * (w - y)
        return (short, -beta, beta) if short > 0 else (0.0, 0.0, 0.0)

    return average(policy, pair)


def slic(policy, ref, columns, previous=None, delta=1.0, lam=0.1):
    def pair(i):
        w, y = policy["chosen"][i].sum(), policy["rejected"][i].sum()
        short = delta - w + y
        active = 1.0 if short > 0 else 0.0
        return active * short - lam * w, -active - lam, active

    return average(policy, pair)
