"""Measures over prompts: their values, and how often their intervals cover the truth."""

import math

import numpy as np
import pytest

from jaxalign.comparison import measures
from jaxalign.comparison.measures import Measured, controlled_win_rate, win_rate, wins


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# Means


def test_a_mean_has_the_standard_error_of_independent_values():
    found = Measured.of([1.0, 2.0, 4.0])
    assert found.estimate == pytest.approx((7 / 3, np.std([1, 2, 4], ddof=1) / math.sqrt(3)))
    assert found.number == 3


def test_values_that_are_not_there_are_left_out_of_a_mean():
    assert Measured.of([1.0, math.nan, 3.0])[::2] == (2.0, 2)
    assert np.isnan(Measured.of([math.nan])[:2]).all()


# Win rates


def test_a_win_is_1_and_a_tie_is_half():
    assert wins(np.array([[1.0, 2.0, 3.0]]), np.array([[2.0, 2.0, 2.0]])).tolist() == [[1, 0.5, 0]]


def test_the_interval_of_wins_and_losses_is_the_one_of_agresti_and_coull():
    z, n, won = 1.959963984540054, 40, 31
    found = win_rate(np.repeat([1.0, 0.0], [won, n - won]))
    middle = (won + z**2 / 2) / (n + z**2)
    reach = z * math.sqrt(middle * (1 - middle) / (n + z**2))
    assert found == pytest.approx((won / n, middle - reach, middle + reach))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_interval_has_a_width_where_all_shares_are_the_same(share):
    found = win_rate(np.full(30, share))
    assert found.value == share
    assert 0 <= found.low <= share <= found.high <= 1
    assert 0.02 < found.high - found.low < 0.2


def drawn(kind, rate, prompts, rng):
    """Shares of wins with a mean of `rate`."""
    if kind == "one answer":
        return (rng.random(prompts) < rate).astype(float)
    if kind == "ties":
        half = 2 * min(rate, 1 - rate)
        base = np.where(rng.random(prompts) < half, 0.5, float(rate > 0.5))
        return base
    spread = {"eight answers": 1.0, "answers to a prompt nearly equal": 300.0}[kind]
    return rng.binomial(8, rng.beta(rate * spread, (1 - rate) * spread, prompts)) / 8


@pytest.mark.parametrize(
    "kind", ["one answer", "ties", "eight answers", "answers to a prompt nearly equal"]
)
@pytest.mark.parametrize("rate", [0.5, 0.9, 0.97])
@pytest.mark.parametrize("prompts", [20, 200])
def test_the_interval_covers_the_rate_in_95_of_100_experiments(kind, rate, prompts):
    rng = np.random.default_rng(0)
    found = [win_rate(drawn(kind, rate, prompts, rng)) for _ in range(2000)]
    # 0.015 is three standard errors of a share of 0.95 in 2,000, and the steps of few prompts.
    assert np.mean([low <= rate <= high for _, low, high in found]) > 0.935


def test_the_usual_interval_does_not_cover_where_one_model_nearly_always_wins():
    rng, covered = np.random.default_rng(0), []
    for _ in range(2000):
        mean, error, _ = Measured.of(drawn("one answer", 0.97, 20, rng))
        covered.append(abs(mean - 0.97) <= measures.Z * error)
    assert np.mean(covered) < 0.6


# At equal length


def experiment(theta, phi, rng, prompts=400, n=4, longer=30.0):
    """Wins with a known effect of the length, and the differences of lengths."""
    lengths = rng.normal(longer, 40.0, (prompts, n))
    p = sigmoid(theta + phi * np.tanh(lengths / lengths.std()))
    return (rng.random((prompts, n)) < p).astype(float), lengths


@pytest.mark.parametrize("theta, phi", [(0.0, 0.0), (1.0, -1.0), (-0.5, 3.0), (2.0, 1.0)])
def test_a_known_rate_and_a_known_effect_of_the_length_are_recovered(theta, phi):
    rng = np.random.default_rng(0)
    found = controlled_win_rate(*experiment(theta, phi, rng, prompts=1000))
    # Three standard errors.
    assert found.rate.value == pytest.approx(sigmoid(theta), abs=0.035)
    assert found.length_effect == pytest.approx(phi, abs=0.35)


def test_equal_models_have_a_controlled_rate_of_one_half():
    found = controlled_win_rate(np.full((30, 4), 0.5), np.zeros((30, 4)))
    assert found.rate == pytest.approx((0.5, 0.5, 0.5))
    assert found.length_effect == 0


def test_a_preference_for_length_alone_is_one_half_at_equal_length():
    rng = np.random.default_rng(0)
    won, longer = experiment(0.0, 4.0, rng)
    found = controlled_win_rate(won, longer)
    assert won.mean() > 0.7
    assert found.rate.low < 0.5 < found.rate.high
    assert abs(found.rate.value - 0.5) < 0.05


@pytest.mark.parametrize("sign", [1, -1])
def test_a_length_that_decides_every_win_leaves_the_rate_finite(sign):
    longer = sign * np.random.default_rng(0).normal(0, 1, (200, 4))
    found = controlled_win_rate((longer > 0).astype(float), longer)
    assert 0.4 < found.rate.low < found.rate.value < found.rate.high < 0.6
    assert 5 < found.length_effect < 50


@pytest.mark.parametrize("wins", [0.0, 1.0])
def test_wins_everywhere_leave_the_rate_finite(wins):
    longer = np.random.default_rng(0).normal(0, 1, (50, 2))
    found = controlled_win_rate(np.full((50, 2), wins), longer)
    assert abs(found.rate.value - wins) < 0.01
    assert 0 < found.rate.value < 1


@pytest.mark.slow
def test_the_controlled_interval_covers_the_rate_in_95_of_100_experiments():
    rng, covered = np.random.default_rng(0), []
    for _ in range(150):
        _, low, high = controlled_win_rate(*experiment(0.8, 1.5, rng, prompts=100, n=2)).rate
        covered.append(low <= sigmoid(0.8) <= high)
    # Three standard errors of a share of 0.95 in 150 are 0.05.
    assert np.mean(covered) > 0.9


def test_the_same_data_give_the_same_interval():
    data = experiment(0.3, 1.0, np.random.default_rng(0), prompts=50)
    assert controlled_win_rate(*data) == controlled_win_rate(*data)


def test_a_bootstrap_in_pieces_is_the_same(monkeypatch):
    data = experiment(0.3, 1.0, np.random.default_rng(0), prompts=50)
    whole = controlled_win_rate(*data)
    monkeypatch.setattr(measures, "NUMBERS", 200 * 77)
    assert controlled_win_rate(*data).rate == pytest.approx(whole.rate, abs=1e-7)


def test_an_answer_that_is_always_longer_by_as_much_has_no_controlled_rate():
    found = controlled_win_rate(np.ones((10, 2)), np.full((10, 2), 7.0))
    assert np.isnan([*found.rate, found.length_effect]).all()


@pytest.mark.parametrize("kind", ["drawn", "decided", "won"])
def test_the_coefficients_have_the_greatest_density(kind):
    rng = np.random.default_rng(0)
    won, longer = experiment(0.5, 2.0, rng, prompts=30, n=3)
    won = {"drawn": won, "decided": (longer > 0) * 1.0, "won": np.ones_like(won)}[kind]
    x, y = np.tanh(longer / longer.std()).reshape(-1), won.reshape(-1)
    (beta,) = measures._fit(y, x, np.ones((1, 30)), np.zeros(2))
    off = (y - sigmoid(beta[0] + beta[1] * x)) / 3
    np.testing.assert_allclose([off.sum(), off @ x], beta / 25, atol=1e-7)
