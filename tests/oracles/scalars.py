"""Scalar functions in float64."""

import math


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def softplus(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def log1mexp(x):
    return math.log(-math.expm1(x)) if x > -0.7 else math.log1p(-math.exp(x))


def log_add(x, y):
    if -math.inf in (x, y):
        return max(x, y)
    return max(x, y) + math.log1p(math.exp(-abs(x - y)))


def log(x):
    return math.log(x) if x > 0 else -math.inf
