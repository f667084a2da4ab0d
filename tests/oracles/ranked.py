import numpy as np

from .scalars import sigmoid, softplus

HYPER = {
    "info_nca": [{}, {"beta": 0.5, "alpha": 0.3}],
    "nca": [{}, {"beta": 0.5, "alpha": 0.3}],
    "plackett_luce": [{}, {"beta": 0.5}],
}


def log_softmax(x):
    x = x - x.max()
    return x - np.log(np.exp(x).sum())


def over_examples(policy, ref, columns, beta, one):
    """Average over examples of `one(m, scores) -> (loss, slope of each m)`."""
    names, n = list(policy), len(columns["scores"])
    loss, grad = 0.0, {name: [] for name in names}
    for i in range(n):
        m = np.array([beta * (policy[r][i].sum() - ref[r][i].sum()) for r in names])
        value, slope = one(m, np.asarray(columns["scores"][i], np.float64))
        loss += value / n
        for name, s in zip(names, slope, strict=True):
            grad[name].append(np.full(len(policy[name][i]), beta * s / n))
    return loss, grad


def info_nca(policy, ref, columns, previous=None, beta=0.01, alpha=1.0):
    def one(m, scores):
        t, q = np.exp(log_softmax(scores / alpha)), log_softmax(m)
        return -t @ q, np.exp(q) - t

    return over_examples(policy, ref, columns, beta, one)


def nca(policy, ref, columns, previous=None, beta=0.01, alpha=1.0):
    def one(m, scores):
        t, loss, slope = np.exp(log_softmax(scores / alpha)), 0.0, []
        for t_i, m_i in zip(t, m, strict=True):
            loss += t_i * softplus(-m_i) + softplus(m_i) / len(m)
            slope.append(-t_i * sigmoid(-m_i) + sigmoid(m_i) / len(m))
        return loss, slope

    return over_examples(policy, ref, columns, beta, one)


def plackett_luce(policy, ref, columns, previous=None, beta=0.1):
    def one(m, scores):
        loss, slope = 0.0, np.zeros(len(m))
        for k in range(len(m) - 1):
            rest = np.logaddexp.reduce(m[k + 1 :])
            loss += softplus(rest - m[k])
            slope[k] -= sigmoid(rest - m[k])
            slope[k + 1 :] += np.exp(m[k + 1 :] - rest) * sigmoid(rest - m[k])
        return loss, slope

    return over_examples(policy, ref, columns, beta, one)
