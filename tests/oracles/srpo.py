import numpy as np

HYPER = {"srpo": [{}, {"beta": 0.3, "alpha": 0.2}, {"alpha": 1.0}, {"alpha": 0.0}]}


def srpo(policy, ref, columns, previous=None, beta=0.1, alpha=0.5):
    """Each residual is 1/2 minus a weighted sum of log-ratios."""
    residuals = [
        (alpha, {"chosen_after_rejected": beta, "rejected_after_rejected": -beta}),
        (alpha, {"chosen_after_chosen": beta, "rejected_after_chosen": -beta}),
        (
            1 - alpha,
            {
                "chosen": beta / 2,
                "rejected": -beta / 2,
                "chosen_after_rejected": beta / 2,
                "rejected_after_chosen": -beta / 2,
            },
        ),
    ]
    n = len(policy["chosen"])
    loss, grad = 0.0, {row: [np.zeros(len(y)) for y in ys] for row, ys in policy.items()}
    for i in range(n):
        for share, weights in residuals:
            ratio = {row: policy[row][i].sum() - ref[row][i].sum() for row in weights}
            residual = 0.5 - sum(weights[row] * ratio[row] for row in weights)
            loss += share * residual**2 / n
            for row, weight in weights.items():
                grad[row][i] -= 2 * share * residual * weight / n
    return loss, grad
