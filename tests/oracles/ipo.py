from .pairs import average, log_ratios

HYPER = {"ipo": [{}, {"tau": 0.5}, {"reduction": "sum"}]}
WORKED = [
    ("ipo", {"reduction": "sum"}, 15.21, -7.8, 7.8),
    ("ipo", {}, 23.06743673469, -1.921142857143, 1.372244897959),
]


def ipo(policy, ref, columns, previous=None, tau=0.1, reduction="mean"):
    def pair(i):
        w, y = log_ratios(policy, ref, i)
        n_w = n_l = 1
        if reduction == "mean":
            n_w, n_l = len(policy["chosen"][i]), len(policy["rejected"][i])
        gap = w / n_w - y / n_l - 1 / (2 * tau)
        return gap**2, 2 * gap / n_w, -2 * gap / n_l

    return average(policy, pair)
