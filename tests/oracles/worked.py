"""Makes the tables `WORKED`: losses of one pair by plain formulas, slopes by differentiation.

    cd tests; python -m oracles.worked

prints each loss, slope of a chosen token and slope of a rejected token. The formulas take complex
numbers: f(x + 1e-100 i) = f(x) + 1e-100 i f'(x), so each slope is as exact as its loss, and no
derivative is written by hand.
"""

from cmath import exp, log

# Summed log-probabilities and lengths of the pair of `tests/lib/worked.py`.
W, L, REF_W, REF_L = -12.3, -14.1, -13.0, -13.7
N_W, N_L = 5, 7


def softplus(z):
    return log(1 + exp(z))


def sigmoid(z):
    return 1 / (1 + exp(-z))


def log_odds(a):
    return a - log(1 - exp(a))


def dpo(w, y, beta=0.1, label_smoothing=0.0):
    z = beta * (w - REF_W - y + REF_L)
    return (1 - label_smoothing) * softplus(-z) + label_smoothing * softplus(z)


def robust_dpo(w, y, beta=0.1, eps=0.1):
    z = beta * (w - REF_W - y + REF_L)
    return ((1 - eps) * softplus(-z) - eps * softplus(z)) / (1 - 2 * eps)


def rpo(w, y, alpha=1.0, sft_reduction="mean"):
    return dpo(w, y) - alpha * w / (1 if sft_reduction == "sum" else N_W)


def r_dpo(w, y, beta=0.1, alpha=0.01):
    return softplus(-beta * (w - REF_W - y + REF_L) - alpha * (N_W - N_L))


def cal_dpo(w, y, beta=0.1, lam=0.5):
    w, y = w - REF_W, y - REF_L
    return softplus(y - w) + lam * ((w - 0.5 / beta) ** 2 + (y + 0.5 / beta) ** 2)


def f_dpo(w, y, beta=0.1, divergence="alpha", alpha=0.5):
    """With f'(u), u = pi / pi_ref."""
    slope = {
        "reverse_kl": lambda u: log(u),
        "forward_kl": lambda u: -1 / u,
        "js": lambda u: log(2 * u / (1 + u)),
        "alpha": lambda u: -(u**-alpha) / alpha,
    }[divergence]
    return softplus(-beta * (slope(exp(w - REF_W)) - slope(exp(y - REF_L))))


def ipo(w, y, tau=0.1, reduction="mean"):
    n_w, n_l = (N_W, N_L) if reduction == "mean" else (1, 1)
    return ((w - REF_W) / n_w - (y - REF_L) / n_l - 1 / (2 * tau)) ** 2


def exo_pair(w, y, beta=0.1, eps=1e-3):
    """KL of the policy's choice from the smoothed label."""
    q = sigmoid(beta * (w - REF_W - y + REF_L))
    return q * log(q / (1 - eps)) + (1 - q) * log((1 - q) / eps)


def nca_pair(w, y, beta=0.1):
    w, y = beta * (w - REF_W), beta * (y - REF_L)
    return softplus(-w) + (softplus(w) + softplus(y)) / 2


def apo_zero(w, y, beta=0.1):
    return sigmoid(-beta * (w - REF_W)) + sigmoid(beta * (y - REF_L))


def discopop(w, y, beta=0.05, tau=0.05):
    z = beta * (w - REF_W - y + REF_L)
    share = sigmoid(z / tau)
    return (1 - share) * softplus(-z) + share * exp(-z)


def sppo_hard(w, y, beta=0.1):
    return (w - REF_W - 0.5 / beta) ** 2 + (y - REF_L + 0.5 / beta) ** 2


def sigmoid_norm(w, y, beta=5.0):
    return softplus(-beta * ((w - REF_W) / N_W - (y - REF_L) / N_L))


def hinge(w, y, beta=0.05):
    """Inside the margin."""
    return 1 - beta * (w - REF_W - y + REF_L)


def slic(w, y, delta=1.0, lam=0.1):
    """Inside the margin."""
    return delta - w + y - lam * w


def simpo(w, y, beta=2.0, gamma_beta_ratio=0.5):
    return softplus(-beta * (w / N_W - y / N_L - gamma_beta_ratio))


def cpo(w, y, beta=0.1, alpha=1.0, sft_reduction="token_mean"):
    return softplus(-beta * (w - y)) - alpha * w / (1 if sft_reduction == "sum" else N_W)


def orpo(w, y, lam=0.1):
    return lam * softplus(log_odds(y / N_L) - log_odds(w / N_W)) - w / N_W


def asft(w, y, lam=1.0, beta=1.0):
    chosen, rejected = log_odds(w / N_W), log_odds(y / N_L)
    return -w / N_W + lam * (softplus(-beta * chosen) + softplus(beta * rejected))


FORMULAS = (
    *(dpo, robust_dpo, rpo, r_dpo, cal_dpo, f_dpo, ipo, exo_pair, nca_pair, apo_zero, discopop),
    *(sppo_hard, sigmoid_norm, hinge, slic, simpo, cpo, orpo, asft),
)


def values(name, **hyper):
    """(loss, slope of the chosen, slope of the rejected summed log-probability)."""
    loss = {formula.__name__: formula for formula in FORMULAS}[name]
    step = 1e-100
    slopes = (loss(W + step * 1j, L, **hyper), loss(W, L + step * 1j, **hyper))
    return (complex(loss(W, L, **hyper)).real, *(x.imag / step for x in slopes))


if __name__ == "__main__":
    from . import WORKED

    for name, hyper, *_ in WORKED:
        print(name, hyper, *(f"{x:.13g}" for x in values(name, **hyper)))
