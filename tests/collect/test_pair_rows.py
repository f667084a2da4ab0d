"""The rows of every method of `pair`: their readers, their random choices, their counts."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lib.pairs import FINISHED, OPTIONS, line, made, prompts, read_as

from jaxalign.collect.pair_methods import METHODS

READERS = {
    **dict.fromkeys(("best_worst", "all_pairs", "tournament", "rso", "beats", "goals"), "odpo"),
    **{"best": "sft", "ranked": "info_nca", "labels": "kto", "each": "f_dpg"},
}
FULL = {name: [*values, values[0]] for name, values in FINISHED.items()}
FULL |= {"gold": "g", "gold_score": -9.0}


@pytest.mark.parametrize("how", METHODS)
def test_the_rows_of_a_method_are_read_by_the_objectives_that_they_are_for(how):
    both = enumerate(([1, -2, 3], [-1, 2, 0]))
    lines = [line(s, prompt=f"Q{n}", responses=["x", "y", "z"], **FULL) for n, s in both]
    rows, _ = made(*lines, how=how, **OPTIONS[how])
    assert len(rows) >= 2
    assert len(read_as(rows, READERS[how])) == len(rows)


@pytest.mark.parametrize("objective", ["spce", "sppo", "egpo", "gpo", "odpo", "adaptive_margin"])
def test_a_pair_with_a_scale_has_the_columns_of_the_objectives_on_scores(objective):
    rows, _ = made(line([1, -2, 3]), how="all_pairs", scale=1.0)
    assert len(read_as(rows, objective)) == 3


def test_a_ranking_is_read_where_the_order_matters():
    rows, _ = made(line([1, -2, 3]), how="ranked")
    assert read_as(rows, "plackett_luce")[0].responses == ("a2", "a0", "a1")


@pytest.mark.parametrize("how", METHODS)
def test_further_columns_are_kept_and_columns_of_another_kind_of_record_are_not(how):
    old = {"chosen": "c", "rejected": "r", "messages": [], "label": 1, "text": "t"}
    raw = line([1, -2, 3], responses=["x", "y", "z"], topic=["t", "u", "v"], **old, **FULL)
    rows, _ = made(raw, how=how, **OPTIONS[how])
    for row in rows:
        assert row["topic"] == ["t", "u", "v"]
        assert {row.get(k, None) for k in ("messages", "text")} == {None}
        assert row.get("chosen") != "c"
    assert len(read_as(rows, READERS[how])) == len(rows)


def test_the_prompt_is_written_as_its_file_has_it():
    chat = [{"from": "human", "value": "Q"}]
    (row,), _ = made(line([1, 2], prompt=chat), how="best_worst")
    assert row["prompt"] == chat


# Properties of all methods


@given(st.sampled_from(sorted(METHODS)), prompts(columns=True), st.integers(0, 9))
def test_every_prompt_is_used_or_counted_and_every_row_is_plain_json(how, lines, seed):
    rows, counts = made(*lines, seed=seed, how=how, **OPTIONS[how])
    assert counts.prompts == len(lines) == counts.used + sum(counts.dropped_prompts.values())
    assert counts.rows == len(rows)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert json.loads(json.dumps(counts.as_dict())) == counts.as_dict()


@given(st.sampled_from(["all_pairs", "tournament", "rso"]), prompts(), st.integers(0, 9))
def test_a_pair_is_of_two_texts_and_its_chosen_answer_scores_higher(how, lines, seed):
    for row in made(*lines, seed=seed, how=how, **OPTIONS[how])[0]:
        assert row["chosen"] != row["rejected"]
        assert row["score_chosen"] > row["score_rejected"]


RANDOM = {"all_pairs": {"most": 2}, "tournament": {}, "rso": {"keep": 4, "beta": 1.0}}


@pytest.mark.parametrize("how", RANDOM)
def test_the_draws_of_a_row_depend_on_the_seed_and_its_number_alone(how):
    lines = [line(range(8), prompt=f"{n}") for n in range(6)]
    others = [line([1, 2])] * 4 + lines[4:]
    mine = [row for row in made(*lines, how=how, **RANDOM[how])[0] if row["prompt"] in "45"]
    same = [row for row in made(*others, how=how, **RANDOM[how])[0] if row["prompt"] in "45"]
    assert mine == same
    assert made(*lines, seed=1, how=how, **RANDOM[how]) != made(*lines, how=how, **RANDOM[how])


def test_the_counts_are_printed_in_the_order_of_the_checks():
    lines = [line([1, 1]), line([1, 2], finishes=["stop", "length"]), line([0, 3])]
    _, counts = made(*lines, how="rso", keep=2, beta=1e9)
    assert counts.lines() == [
        "3 prompts: 1 used, 1 rows written",
        "prompts dropped, too few answers: 1",
        "prompts dropped, nothing left: 1",
        "answers dropped, unfinished: 1",
        "pairs dropped, tie: 1",
        "accepted share: 1",
    ]
