"""The methods of `pair` on arrays, against closed forms and enumerations."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxalign.collect import pairing

SCORES = st.lists(st.integers(-3, 3).map(float), min_size=2, max_size=9).map(np.array)


def rng(seed):
    return np.random.default_rng(seed)


# Ranks


@given(SCORES)
def test_ranks_sort_by_score_and_keep_the_order_of_equal_ones(scores):
    assert pairing.ranks(scores) == sorted(range(len(scores)), key=lambda i: (-scores[i], i))


@given(st.integers(2, 40), st.integers(2, 40))
def test_spaced_ranks_are_distinct_and_reach_from_the_best_to_the_worst(count, keep):
    count = max(count, keep)
    found = pairing.spaced(count, keep)
    assert found[0] == 0
    assert found[-1] == count - 1
    assert found == sorted(set(found))
    assert len(found) == keep


@given(st.integers(2, 40), st.integers(2, 40))
def test_a_spaced_rank_is_at_most_half_a_rank_from_even_spacing(count, keep):
    count = max(count, keep)
    even = np.linspace(0, count - 1, keep)
    assert np.abs(np.array(pairing.spaced(count, keep)) - even).max() <= 0.5 + 1e-9


# Tournaments


@given(SCORES, st.integers(0, 99))
def test_a_tournament_has_one_match_less_than_answers_and_a_loser_never_returns(scores, seed):
    matches = pairing.tournament(scores, rng(seed))
    losers = [loser for _, loser in matches]
    assert len(matches) == len(scores) - 1
    assert len(set(losers)) == len(losers)
    for k, match in enumerate(matches):
        assert set(match).isdisjoint(losers[:k])


@given(SCORES, st.integers(0, 99))
def test_the_answer_that_loses_no_match_has_the_highest_score(scores, seed):
    (left,) = set(range(len(scores))) - {
        loser for _, loser in pairing.tournament(scores, rng(seed))
    }
    assert scores[left] == scores.max()


@given(SCORES, st.integers(0, 99))
def test_the_first_round_pairs_disjoint_answers(scores, seed):
    matches = pairing.tournament(scores, rng(seed), first_round=True)
    met = [i for match in matches for i in match]
    assert len(matches) == len(scores) // 2
    assert len(set(met)) == len(met)
    assert matches == pairing.tournament(scores, rng(seed))[: len(matches)]


def test_of_eight_answers_the_rounds_have_four_two_and_one_matches():
    scores = np.arange(8.0)
    matches = pairing.tournament(scores, rng(3))
    first, second, last = matches[:4], matches[4:6], matches[6:]
    assert {i for match in second for i in match} == {winner for winner, _ in first}
    assert {i for match in last for i in match} == {winner for winner, _ in second}
    assert last[0][0] == 7


def test_every_order_of_a_tournament_is_as_likely_as_any_other():
    # Of 3 answers the one left over is each with probability 1/3: 3,000 draws, 4 deviations.
    alone = [
        ({0, 1, 2} - set(pairing.tournament(np.arange(3.0), rng(s))[0])).pop() for s in range(3000)
    ]
    share = np.bincount(alone, minlength=3) / 3000
    np.testing.assert_allclose(share, 1 / 3, atol=4 * math.sqrt(2 / 9 / 3000))


# Rejection sampling


def first_accepted(scores, beta):
    """The probability of each answer to be the one accepted, over all orders of the candidates."""
    accept = np.exp((scores - scores.max()) / beta)
    found = np.zeros(len(scores))
    orders = list(itertools.permutations(range(len(scores))))
    for order in orders:
        reached = 1.0
        for i in order:
            found[i] += reached * accept[i] / len(orders)
            reached *= 1 - accept[i]
    return found


@pytest.mark.parametrize("beta", [0.3, 1.0, 4.0])
def test_one_accepted_answer_has_the_frequencies_of_all_orders(beta):
    scores, n = np.array([0.0, -1.0, 0.5, -0.2]), 4000
    expected = first_accepted(scores, beta)
    taken = [pairing.rejection_sample(scores, 1, beta, rng(s))[0][0] for s in range(n)]
    share = np.bincount(taken, minlength=4) / n
    assert (np.abs(share - expected) <= 4 * np.sqrt(expected * (1 - expected) / n)).all()


def test_an_answer_passes_a_draw_with_the_probability_of_its_score():
    """Of two answers with one accepted, the worse is it where it comes first and passes."""
    gap, beta, n = 0.7, 0.5, 4000
    taken = [pairing.rejection_sample(np.array([0, gap]), 1, beta, rng(s))[0][0] for s in range(n)]
    expected = 0.5 * math.exp(-gap / beta)
    assert abs(taken.count(0) / n - expected) <= 4 * math.sqrt(expected / n)


def test_the_maximum_of_the_next_pass_is_of_the_remaining_candidates():
    """With a tiny beta each pass accepts one answer: the best, then the second, and so on."""
    scores = np.array([3.0, 9.0, 1.0, 7.0, 5.0])
    assert pairing.rejection_sample(scores, 3, 1e-9, rng(0)) == ([1, 3, 4], 5 + 4 + last_pass(0))


def last_pass(seed):
    """The draws of the third pass, which ends at the answer accepted: 4 of 0, 2, 4 in its order."""
    order = [i for i in rng(seed).permutation(5).tolist() if i in (0, 2, 4)]
    return order.index(4) + 1


def test_a_large_beta_accepts_every_subset_equally_often():
    n, scores = 3000, np.array([5.0, -5.0, 0.0])
    taken = [frozenset(pairing.rejection_sample(scores, 2, 1e9, rng(s))[0]) for s in range(n)]
    for two in map(frozenset, itertools.combinations(range(3), 2)):
        assert abs(taken.count(two) / n - 1 / 3) <= 4 * math.sqrt(2 / 9 / n)


@given(SCORES, st.integers(0, 99), st.floats(1e-300, 1e300), st.data())
def test_rejection_sampling_takes_as_many_distinct_answers_as_it_should(scores, seed, beta, data):
    keep = data.draw(st.integers(1, len(scores)))
    accepted, draws = pairing.rejection_sample(scores, keep, beta, rng(seed))
    assert len(set(accepted)) == len(accepted) == keep
    assert draws >= keep


# Probabilities


def test_a_gap_of_the_scale_wins_with_the_odds_e():
    p = float(pairing.preference(2.5, 2.5))
    assert math.log(p / (1 - p)) == pytest.approx(1)


@given(st.floats(-1e38, 1e38), st.floats(1e-300, 1e300))
def test_both_sides_of_a_preference_sum_to_one(gap, scale):
    p, q = pairing.preference(gap, scale), pairing.preference(-gap, scale)
    assert 0 <= p <= 1
    assert p + q == pytest.approx(1)


def test_a_preference_gap_is_the_mean_difference_of_win_rates():
    others = np.array([0.3, -1.2, 2.0])
    rates = [
        1 / (1 + math.exp((o - 1.5) / 0.7)) - 1 / (1 + math.exp((o + 0.4) / 0.7)) for o in others
    ]
    assert pairing.preference_gap(1.5, -0.4, others, 0.7) == pytest.approx(sum(rates) / 3)


# Targets


def test_the_target_of_samples_of_the_model_is_its_logp_and_the_score_over_the_mean_weight():
    logps, scores = np.array([-2.0, -5.0, -1.0]), np.array([1.0, 3.0, 0.0])
    found = pairing.target_logps(logps, logps, scores, 2.0, 3)
    mean = np.exp(scores / 2).mean()
    np.testing.assert_allclose(found, logps + scores / 2 - math.log(mean), rtol=1e-12)


def test_the_target_is_normalized_under_any_sampler():
    """Each of four possible answers as often as the sampler draws it: Z, and so p, is exact."""
    model, sampler = np.array([0.5, 0.25, 0.125, 0.125]), np.array([1, 2, 4, 1]) / 8
    scores, beta = np.array([0.0, 1.0, -2.0, 0.5]), 0.8
    drawn = np.repeat(np.arange(4), [1, 2, 4, 1])
    found = pairing.target_logps(
        np.log(model[drawn]), np.log(sampler[drawn]), scores[drawn], beta, 8
    )
    tilted = model * np.exp(scores / beta)
    np.testing.assert_allclose(np.exp(found), (tilted / tilted.sum())[drawn], rtol=1e-12)


def test_answers_that_the_target_excludes_count_as_drawn():
    """The third of four equally likely answers is left out: the rest shares its probability."""
    logps = np.log(np.full(3, 0.25))
    found = pairing.target_logps(logps, logps, np.zeros(3), 1.0, 4)
    np.testing.assert_allclose(np.exp(found), 1 / 3, rtol=1e-12)


def test_large_scores_do_not_overflow_the_target():
    logps, scores = np.array([-1.0, -1.0]), np.array([1000.0, 0.0])
    found = pairing.target_logps(logps, logps, scores, 1.0, 2)
    np.testing.assert_allclose(found, [-1 + math.log(2), -1001 + math.log(2)], rtol=1e-12)
