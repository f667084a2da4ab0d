"""Scored answers to training data: the rows of each method, and the answers that take part."""

import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lib.pairs import FINISHED, OPTIONS, line, made, pairs_of, prompts, rows_of

from jaxalign.collect.pair_methods import METHODS
from jaxalign.settings.pair import How


def test_every_method_has_a_function():
    assert tuple(METHODS) == get_args(How)


# Pairs

BEATS = {"against": "gold", "against_score": "gold_score"}
GOAL = {"how": "goals", "template": "Aim at {score}. "}


def test_best_worst_is_the_highest_score_against_the_lowest():
    (row,), counts = made(line([1, 5, -2, 3]), how="best_worst")
    assert row == {
        "prompt": "Q",
        "chosen": "a1",
        "rejected": "a2",
        "score_chosen": 5.0,
        "score_rejected": -2.0,
        "margin": 7.0,
    }
    assert (counts.prompts, counts.used, counts.rows, counts.answers) == (1, 1, 1, 4)


def test_a_prompt_whose_answers_tie_gives_no_pair():
    rows, counts = made(line([2, 2, 2]), how="best_worst")
    assert rows == []
    assert (counts.dropped_pairs, counts.dropped_prompts) == ({"tie": 1}, {"nothing left": 1})


def test_a_pair_must_differ_by_more_than_the_margin():
    lines = [line([0, 1]), line([0, 1.5]), line([1, 1])]
    rows, counts = made(*lines, how="best_worst", margin=1.0)
    assert [row["margin"] for row in rows] == [1.5]
    assert counts.dropped_pairs == {"tie": 1, "margin": 1}


@given(prompts(), st.floats(0, 3))
def test_all_pairs_are_the_pairs_of_a_brute_force(lines, margin):
    rows, _ = made(*lines, how="all_pairs", margin=margin)
    expected = [
        (n, win, lose)
        for n, raw in enumerate(lines)
        for win, a in rows_of(raw).items()
        for lose, b in rows_of(raw).items()
        if a - b > margin
    ]
    assert sorted(pairs_of(rows)) == sorted(expected)


def test_of_more_pairs_than_the_most_as_many_are_drawn_and_each_is_as_likely():
    """3 of 6 pairs of 2,000 prompts: each pair in half of them, up to 4 deviations."""
    rows, counts = made(*[line([0, 1, 2, 3])] * 2000, how="all_pairs", most=3)
    assert len(rows) == 6000
    assert counts.dropped_pairs == {"over the most": 6000}
    found = [(row["chosen"], row["rejected"]) for row in rows]
    for two in set(found):
        assert abs(found.count(two) / 2000 - 0.5) < 4 * math.sqrt(0.25 / 2000)


def test_the_most_is_drawn_from_the_pairs_over_the_margin():
    rows, _ = made(line([0, 0.1, 0.2, 5]), how="all_pairs", most=3, margin=1.0)
    assert [row["chosen"] for row in rows] == ["a3"] * 3


@pytest.mark.parametrize(("rounds", "count"), [("first", 4), ("all", 7), (None, 7)])
def test_a_tournament_of_eight_gives_four_pairs_in_its_first_round_and_seven_in_all(rounds, count):
    rows, _ = made(line(range(8)), how="tournament", rounds=rounds)
    assert len(rows) == count
    assert all(row["score_chosen"] > row["score_rejected"] for row in rows)


def test_rso_with_a_tiny_beta_pairs_the_best_answers():
    rows, counts = made(line([0, 9, 1, 8, 7, 2]), how="rso", keep=3, beta=1e-9)
    assert {row["chosen"] for row in rows} | {row["rejected"] for row in rows} == {"a1", "a3", "a4"}
    assert 0 < counts.measured["accepted share"] < 1


def test_rso_with_a_large_beta_accepts_every_draw():
    rows, counts = made(line([0, 9, 1]), how="rso", keep=3, beta=1e9, rounds="first")
    assert len(rows) == 1
    assert counts.measured == {"accepted share": 1.0}


def test_rso_drops_a_prompt_with_fewer_answers_than_it_is_to_accept():
    rows, counts = made(line([0, 1]), how="rso", keep=3, beta=1.0)
    assert (rows, counts.dropped_prompts) == ([], {"too few answers": 1})


def test_the_best_answer_is_kept_where_it_beats_the_given_one():
    given_answer = {"gold": "g", "gold_score": 2.0}
    lines = [line(s, **given_answer) for s in ([1, 3.5], [1, 2.5], [1, 2], [1, 1.5])]
    rows, counts = made(*lines, how="beats", margin=1.0, **BEATS)
    (row,) = rows
    assert row == {
        "prompt": "Q",
        "chosen": "a1",
        "rejected": "g",
        "score_chosen": 3.5,
        "score_rejected": 2.0,
        "margin": 1.5,
    }
    assert counts.dropped_pairs == {"tie": 1, "margin": 2}


def test_a_given_answer_with_the_text_of_the_best_makes_no_pair():
    rows, counts = made(line([1, 3], gold="a1", gold_score=0), how="beats", **BEATS)
    assert (rows, counts.dropped_pairs) == ([], {"tie": 1})


def test_the_given_answer_may_be_in_a_column_that_names_a_kind_of_record():
    raw = line([1, 3], completion="g", s=2)
    (row,), _ = made(raw, how="beats", against="completion", against_score="s")
    assert (row["chosen"], row["rejected"]) == ("a1", "g")
    assert set(row).isdisjoint({"completion", "s"})


def test_goals_prefer_the_answer_whose_score_the_prompt_asks_for():
    rows, _ = made(line([1, 3.5]), **GOAL)
    scores = {"score_chosen": 0.0, "score_rejected": -6.25, "margin": 6.25}
    assert rows == [
        {"prompt": "Aim at 3.5. Q", "chosen": "a1", "rejected": "a0", **scores},
        {"prompt": "Aim at 1. Q", "chosen": "a0", "rejected": "a1", **scores},
    ]


def test_a_goal_is_a_new_system_message_or_begins_the_one_of_the_chat():
    user = {"role": "user", "content": "Q"}
    system = {"role": "system", "content": "Be brief."}
    rows, _ = made(line([1, 2], prompt=[user]), line([1, 2], prompt=[system, user]), **GOAL)
    assert rows[0]["prompt"] == [{"role": "system", "content": "Aim at 2. "}, user]
    assert rows[2]["prompt"] == [{"role": "system", "content": "Aim at 2. Be brief."}, user]


def test_goals_take_at_most_as_many_pairs_as_asked_for():
    rows, counts = made(line([0, 1, 2, 3]), **GOAL, most=2)
    assert len(rows) == 4
    assert counts.dropped_pairs == {"over the most": 4}


# Numbers of pairs


@given(prompts(), st.floats(0.1, 10))
def test_the_preference_is_the_sigmoid_of_the_difference(lines, scale):
    for row in made(*lines, how="all_pairs", scale=scale)[0]:
        gap = row["score_chosen"] - row["score_rejected"]
        assert row["margin"] == gap
        assert row["preference"] == pytest.approx(1 / (1 + math.exp(-gap / scale)))


def test_the_preference_gap_compares_both_answers_with_the_others_of_the_prompt():
    (row,), _ = made(line([1, 5, -2, 3]), how="best_worst", scale=2.0)
    win = [1 / (1 + math.exp(-(5 - o) / 2)) for o in (1, 3)]
    lose = [1 / (1 + math.exp(-(-2 - o) / 2)) for o in (1, 3)]
    assert row["preference_gap"] == pytest.approx((sum(win) - sum(lose)) / 2)


def test_a_prompt_with_two_answers_has_no_preference_gap():
    (row,), _ = made(line([1, 5]), how="best_worst", scale=2.0)
    assert "preference" in row
    assert "preference_gap" not in row


def test_without_a_scale_a_pair_has_no_preference():
    (row,), _ = made(line([1, 5, 3]), how="best_worst")
    assert set(row).isdisjoint({"preference", "preference_gap"})


SCORERS = {"scores_a": [0, 1, 2], "scores_b": [0, 2, 1], "scores_c": [3, 4, 3]}


@pytest.mark.parametrize(("agree", "kept"), [(0.6, 3), (0.7, 1), (1.0, 1)])
def test_a_pair_needs_the_share_of_scorers_that_agree(agree, kept):
    """For a1 over a0: 3 of 3 scorers; a2 over a0: 2 (c ties); a1 over a2: 2 of 3."""
    rows, counts = made(line([0, 2, 1], **SCORERS), how="all_pairs", agree=agree)
    assert len(rows) == kept
    assert counts.dropped_pairs.get("uncertain", 0) == 3 - kept


def test_the_votes_of_the_scorers_are_the_margin():
    rows, _ = made(line([0, 2, 1], **SCORERS), how="all_pairs", votes=True)
    found = {(row["chosen"], row["rejected"]): row["margin"] for row in rows}
    expected = {("a1", "a0"): 1, ("a2", "a0"): 2 / 3, ("a1", "a2"): 1 / 3}
    assert found == pytest.approx(expected)


# Other methods


def test_best_gives_the_best_answers_one_row_each():
    rows, _ = made(line([1, 5, -2, 3]), how="best", keep=2)
    assert rows == [
        {"prompt": "Q", "completion": "a1", "score": 5.0},
        {"prompt": "Q", "completion": "a3", "score": 3.0},
    ]


def test_best_takes_one_answer_by_default_and_only_over_the_threshold():
    rows, counts = made(line([1, 5]), line([0, 0.5]), how="best", threshold=1.0)
    assert [row["completion"] for row in rows] == ["a1"]
    assert counts.dropped_answers == {"below the threshold": 2}
    assert counts.dropped_prompts == {"nothing left": 1}


def test_a_ranking_has_the_answers_best_first():
    (row,), _ = made(line([1, 5, -2, 3]), how="ranked")
    assert row["responses"] == ["a1", "a3", "a0", "a2"]
    assert row["scores"] == [5.0, 3.0, 1.0, -2.0]


def test_a_ranking_of_a_few_takes_evenly_spaced_ranks():
    (row,), _ = made(line(range(7)), how="ranked", keep=3)
    assert row["scores"] == [6.0, 3.0, 0.0]


def test_rankings_have_the_length_of_the_longest_and_shorter_ones_are_dropped():
    rows, counts = made(line([1, 2]), line([1, 2, 3]), line([3, 2, 1]), how="ranked")
    assert [len(row["responses"]) for row in rows] == [3, 3]
    assert counts.dropped_prompts == {"too few answers": 1}
    assert counts.measured == {"answers of a row": 3}


def test_a_label_says_whether_the_score_reaches_the_threshold():
    rows, _ = made(line([0.9, 1, 1.1]), how="labels", threshold=1.0)
    assert [row["label"] for row in rows] == [False, True, True]
    assert rows[0] == {"prompt": "Q", "completion": "a0", "label": False, "score": 0.9}


def test_answers_between_the_thresholds_get_no_label():
    rows, counts = made(line([0.9, 1, 1.9, 2]), how="labels", threshold=1.0, upper=2.0)
    assert [(row["completion"], row["label"]) for row in rows] == [("a0", False), ("a3", True)]
    assert counts.dropped_answers == {"between the thresholds": 2}


@given(prompts(), st.floats(0.05, 0.5), st.floats(0.55, 0.95))
def test_quantiles_are_of_all_scores_of_the_file(lines, low, high):
    rows, counts = made(*lines, how="labels", quantile=low, upper=high)
    scores = np.concatenate([raw["scores"] for raw in lines])
    bounds = np.quantile(scores, low), np.quantile(scores, high)
    assert (counts.measured["threshold"], counts.measured["upper"]) == bounds
    expected = [bool(s >= bounds[1]) for s in scores if s < bounds[0] or s >= bounds[1]]
    assert [row["label"] for row in rows] == expected


def test_each_gives_every_answer_with_its_numbers():
    raw = line([1, 2], **FINISHED, scores_a=[3, 4])
    rows, _ = made(raw, how="each")
    assert rows[1] == {
        "prompt": "Q",
        "completion": "a1",
        "score": 2,
        "finish": "stop",
        "tokens": 6,
        "logp": -4.0,
        "behavior_logp": -3.0,
        "seed": 8,
        "score_a": 4,
    }


def test_each_with_a_beta_has_the_target_of_the_scores():
    raw = line([1, 2], **FINISHED)
    rows, _ = made(raw, how="each", beta=0.5)
    tilted = np.array(FINISHED["logps"]) + np.array([1, 2]) / 0.5
    z = np.exp(tilted - np.array(FINISHED["sampler_logps"])).mean()
    np.testing.assert_allclose([row["target_logp"] for row in rows], tilted - math.log(z))


def test_an_answer_left_out_counts_as_drawn_in_the_target():
    raw = line([1, 2], **FINISHED | {"finishes": ["length", "stop"]})
    (row,), _ = made(raw, how="each", beta=0.5)
    # Alone of two draws: p = q of the sampler, times 2.
    assert row["target_logp"] == pytest.approx(-3.0 + math.log(2))


# Answers that take part


@pytest.mark.parametrize(("unfinished", "chosen"), [("drop", "a0"), ("keep", "a1")])
def test_an_answer_that_was_cut_takes_part_only_if_kept(unfinished, chosen):
    raw = line([1, 5, 0], finishes=["stop", "length", "stop"])
    (row,), counts = made(raw, how="best_worst", unfinished=unfinished)
    assert row["chosen"] == chosen
    assert counts.dropped_answers == ({"unfinished": 1} if unfinished == "drop" else {})


def test_an_empty_answer_never_takes_part():
    rows, counts = made(line([1, 2, 3], responses=["a", " \n", "b"]), how="all_pairs")
    assert [(row["chosen"], row["rejected"]) for row in rows] == [("b", "a")]
    assert counts.dropped_answers == {"empty": 1}


def test_equal_answers_count_once_where_answers_are_compared():
    raw = line([1, 2, 1], responses=["a", "b", "a"])
    rows, counts = made(raw, how="all_pairs")
    assert (len(rows), counts.dropped_answers) == (1, {"repeated": 1})


@pytest.mark.parametrize("how", ["labels", "each"])
def test_equal_answers_count_each_where_they_are_samples(how):
    raw = line([1, 1], responses=["a", "a"], **FINISHED)
    assert len(made(raw, how=how, **OPTIONS[how])[0]) == 2


def test_a_prompt_with_one_answer_left_gives_no_pair():
    raw = line([1, 2], finishes=["stop", "length"])
    rows, counts = made(raw, how="best_worst")
    assert (rows, counts.dropped_prompts) == ([], {"too few answers": 1})
