from .pairs import average, log_ratios
from .scalars import sigmoid, softplus

HYPER = {"cal_dpo": [{}, {"beta": 0.1, "lam": 0.1}, {"beta": 0.5, "lam": 0.0}]}
WORKED = [
    ("cal_dpo", {"beta": 0.1}, 20.11233532512, -4.549739894405, 4.849739894405),
    ("cal_dpo", {"beta": 0.1, "lam": 1.0}, 39.93733532512, -8.849739894405, 9.449739894405),
]


def cal_dpo(policy, ref, columns, previous=None, beta=0.001, lam=0.5):
    def pair(i):
        w, y = log_ratios(policy, ref, i)
        gap_w, gap_l = w - 1 / (2 * beta), y + 1 / (2 * beta)
        loss = softplus(y - w) + lam * (gap_w**2 + gap_l**2)
        return loss, -sigmoid(y - w) + 2 * lam * gap_w, sigmoid(y - w) + 2 * lam * gap_l

    return average(policy, pair)
