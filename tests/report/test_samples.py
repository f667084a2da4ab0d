from __future__ import annotations

import json
import math

import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.report.samples import (
    Comparison,
    Estimate,
    Measure,
    Sample,
    parse_samples,
    with_rewards,
    write_samples,
)


def by_length(prompt, answer):
    return float(len(answer))


def summary(*columns):
    return Comparison("sft", "dpo", with_rewards(*columns, by_length)).summary()


def test_an_estimate_is_the_mean_and_its_standard_error():
    values = np.random.default_rng(0).normal(size=50)
    estimate = Estimate.of(list(values))
    assert estimate.mean == pytest.approx(values.sum() / 50)
    assert estimate.error == pytest.approx(
        math.sqrt(((values - values.mean()) ** 2).sum() / 49 / 50)
    )


def test_the_error_of_a_single_value_is_unknown():
    assert math.isnan(Estimate.of([1.0]).error)


def test_rewards_before_and_after_are_means_over_prompts():
    found = summary(["p", "q"], ["a", "aaa"], ["aaaa", "aa"])
    assert (found.before.mean, found.after.mean, found.gain.mean) == (2.0, 3.0, 1.0)


def test_a_tie_is_half_a_win():
    found = summary(["p"] * 4, ["aa"] * 4, ["aaa", "aaa", "aa", "a"])
    assert found.win_rate.mean == pytest.approx((1 + 1 + 0.5 + 0) / 4)


def test_the_error_of_the_gain_is_paired_by_prompt():
    found = summary(["p"] * 3, ["a", "aa", "aaa"], ["aa", "aaa", "aaaa"])
    assert found.gain.error == 0.0
    assert found.before.error > 0.0


def test_no_prompts_are_refused():
    with pytest.raises(UserError, match="report: got no prompts, wanted at least one"):
        with_rewards([], [], [], by_length)


def test_lists_of_different_length_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        with_rewards(["p", "q"], ["a", "b"], ["a"], by_length)


def test_samples_without_rewards_have_no_summary():
    assert Comparison("sft", "dpo", (Sample("p", "a", "b"),)).summary() is None


def test_written_samples_are_read_back(tmp_path):
    samples = (Sample("p\n", "a", "é", 0.25, 1 / 3), Sample("q", "", "b"))
    written = Comparison("sft", "dpo", samples, (Measure("x", "1", "2", "+1"),), 2.5)
    write_samples(tmp_path, written)
    assert parse_samples(json.loads((tmp_path / "samples.json").read_text())) == written


@pytest.mark.parametrize("reward", ["NaN", "Infinity", '"much"', "[]"])
def test_a_reward_that_is_no_finite_number_is_refused(reward):
    text = f'{{"prompt": "p", "before": "a", "after": "b", "reward_before": {reward}}}'
    with pytest.raises((ValueError, TypeError)):
        parse_samples({"before": "x", "after": "y", "samples": [json.loads(text)]})
