"""The mistakes in scored answers and in the options of `pair`, each with its message."""

import dataclasses
import re

import pydantic
import pytest
from lib.pairs import FINISHED, OPTIONS, line, made

from jaxalign.data.sources import raw_records
from jaxalign.errors import UserError
from jaxalign.settings.pair import NEEDS, READS, Pair, problems

BEST = {"how": "best_worst"}


def refused(message, *lines, **options):
    with pytest.raises(UserError, match=message):
        made(*lines, **options)


# Rows


def test_a_file_without_rows_is_refused():
    refused("f.jsonl: no rows; give a file with scored answers", **BEST)


@pytest.mark.parametrize("name", ["prompt", "responses", "scores"])
def test_a_row_without_a_column_is_refused(name):
    raw = {k: v for k, v in line([1, 2]).items() if k != name}
    refused(f"f.jsonl line 2: no '{name}'; the columns are ", line([1, 2]), raw, **BEST)


def test_a_column_of_null_counts_as_absent():
    refused("line 1: no 'scores'; the columns are ", line([1, 2], scores=None), **BEST)
    assert made(line([1, 2], finishes=None), **BEST)[1].rows == 1


@pytest.mark.parametrize("name", ["scores", *FINISHED, "scores_a"])
@pytest.mark.parametrize("found", [[1], 3, [1, 2, 3]])
def test_an_answer_column_of_another_length_is_refused(name, found):
    said = re.escape(f"'{name}' is {found!s}; wanted a list of 2, one a response")
    refused(f"line 1: {said}", line([1, 2], **{name: found}), **BEST)


@pytest.mark.parametrize("name", ["scores", "logps", "seeds", "scores_a"])
@pytest.mark.parametrize("found", [float("nan"), float("inf"), "2", True, None, [1]])
def test_an_entry_that_is_no_number_is_refused(name, found):
    said = rf"line 1: '{name}\[1\]' is .*; wanted a finite number"
    refused(said, line([1, 2], **{name: [0, found]}), **BEST)


def test_a_nan_in_the_file_is_refused_by_its_reader(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text('{"prompt": "Q", "responses": ["a", "b"], "scores": [1, NaN]}\n')
    with pytest.raises(UserError, match=r"line 1: not JSON .*NaN"):
        list(raw_records(str(path), ""))


@pytest.mark.parametrize("found", ["stopped", 1, None])
def test_a_finish_of_another_kind_is_refused(found):
    said = r"line 1: 'finishes\[1\]' is .*; wanted stop or length"
    refused(said, line([1, 2], finishes=["stop", found]), **BEST)


@pytest.mark.parametrize("found", [3, ["a"], [-1], [1.5], [True]])
def test_token_ids_of_another_kind_are_refused(found):
    said = r"line 1: 'token_ids\[1\]' is .*; wanted a list of token ids"
    refused(said, line([1, 2], token_ids=[[], found]), **BEST)


@pytest.mark.parametrize("found", [[], "a"])
def test_responses_that_are_no_list_of_texts_are_refused(found):
    said = "line 1: 'responses' is .*; wanted a list of one or more texts"
    refused(said, line([1, 2], responses=found), **BEST)


def test_a_response_of_another_kind_is_refused():
    said = r"line 1: 'responses\[1\]' is neither text nor messages"
    refused(said, line([1, 2], responses=["a", 3]), **BEST)


def test_a_response_of_messages_is_refused():
    said = r"line 1: 'responses\[0\]' holds messages; wanted the text of an answer"
    chat = [{"role": "assistant", "content": "a"}]
    refused(said, line([1, 2], responses=[chat, "b"]), **BEST)


def test_a_prompt_of_another_kind_is_refused():
    refused("line 1: 'prompt' is neither text nor messages", line([1, 2], prompt=3), **BEST)


@pytest.mark.parametrize("option", [{"agree": 0.5}, {"votes": True}])
def test_an_option_on_scorers_without_their_columns_is_refused(option):
    (name,) = option
    said = f"line 1: no column 'scores_NAME' .*which pair.{name} reads; .*leave the option out"
    refused(said, line([1, 2]), **BEST, **option)


@pytest.mark.parametrize("name", ["logps", "sampler_logps"])
def test_a_target_without_its_log_probabilities_is_refused(name):
    raw = line([1, 2], **{k: v for k, v in FINISHED.items() if k != name})
    said = f"line 1: no column '{name}', which pair.beta reads for the target; .*leave beta out"
    refused(said, raw, how="each", beta=1.0)


def test_scores_too_large_for_beta_are_refused():
    said = "line 1: 'scores' divided by pair.beta, 1e-300, are too large .*; raise beta"
    refused(said, line([1e37, 2e37], **FINISHED), how="each", beta=1e-300)


def test_a_quantile_of_no_answers_is_refused():
    said = "f.jsonl: no answer to take the quantile of; all are left out"
    refused(said, line([1], finishes=["length"]), how="labels", quantile=0.5)


BEATS = OPTIONS["beats"]


@pytest.mark.parametrize("name", ["gold", "gold_score"])
def test_a_given_answer_without_its_columns_is_refused(name):
    raw = {k: v for k, v in line([1, 2], gold="g", gold_score=1).items() if k != name}
    refused(f"line 1: no '{name}'; the columns are ", raw, how="beats", **BEATS)


def test_a_given_answer_of_messages_is_refused():
    raw = line([1, 2], gold=[{"role": "assistant", "content": "g"}], gold_score=1)
    said = "line 1: 'gold' holds messages; wanted the text of the given answer"
    refused(said, raw, how="beats", **BEATS)


def test_a_score_of_the_given_answer_that_is_no_number_is_refused():
    raw = line([1, 2], gold="g", gold_score="high")
    refused("line 1: 'gold_score' is 'high'; wanted a finite number", raw, how="beats", **BEATS)


# Options

SET = {
    **{"margin": 1.0, "agree": 0.5, "votes": True, "scale": 1.0, "most": 2, "rounds": "first"},
    **{"keep": 3, "beta": 1.0, "threshold": 0.0, "quantile": 0.5, "upper": 0.7},
    **{"template": "{score}", "against": "a", "against_score": "b"},
}
NAMES = [field.name for field in dataclasses.fields(Pair)][3:]


def test_every_option_has_a_method_that_reads_it():
    assert set(NAMES) == set(SET) == {name for names in READS.values() for name in names}


@pytest.mark.parametrize("how", READS)
@pytest.mark.parametrize("name", NAMES)
def test_an_option_is_refused_just_where_the_method_does_not_read_it(how, name):
    found = problems(Pair(data="f", how=how, **{name: SET[name]}))
    assert ("does not read it" in found.get(name, "")) == (name not in READS[how])


def test_a_refused_option_names_the_methods_that_read_it():
    said = "pair.most: `how: best_worst` does not read it; leave it out, or choose all_pairs, goals"
    refused(said, line([1, 2]), **BEST, most=2)


@pytest.mark.parametrize(("how", "name"), [(how, name) for how in NEEDS for name in NEEDS[how]])
def test_an_option_that_a_method_needs_is_asked_for(how, name):
    given = {k: v for k, v in OPTIONS[how].items() if k != name}
    refused(f"pair.{name}: missing; `how: {how}` needs it", line([1, 2]), how=how, **given)


def test_all_complaints_come_at_once():
    found = problems(Pair(data="f", how="rso", most=1))
    assert list(found) == ["most", "keep", "beta"]


@pytest.mark.parametrize("given", [{}, {"threshold": 0.5, "quantile": 0.5}])
def test_labels_need_one_of_threshold_and_quantile(given):
    said = "pair.threshold: give one of threshold and quantile"
    refused(said, line([1, 2]), how="labels", **given)


@pytest.mark.parametrize("low", ["threshold", "quantile"])
def test_an_upper_threshold_that_is_not_above_the_lower_is_refused(low):
    said = r"pair.upper: wanted more than the threshold, 0\.5 \(got 0\.5\)"
    refused(said, line([1, 2]), how="labels", upper=0.5, **{low: 0.5})


def test_an_upper_quantile_of_one_or_more_is_refused():
    said = r"pair.upper: next to quantile it is one too; wanted less than 1 \(got 1\)"
    refused(said, line([1, 2]), how="labels", quantile=0.5, upper=1.0)


@pytest.mark.parametrize("given", [{"how": "ranked"}, {"how": "rso", "beta": 1.0}])
def test_a_single_answer_to_compare_is_refused(given):
    said = r"pair.keep: wanted two or more answers to compare \(got 1\)"
    refused(said, line([1, 2]), **given, keep=1)


def test_a_template_without_the_score_is_refused():
    said = r"pair.template: no \{score\} in it, the place of the score asked for; add it"
    refused(said, line([1, 2]), how="goals", template="Do well.")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("margin", -0.1), ("agree", 0), ("agree", 1.1), ("scale", 0), ("beta", 0.0)],
        *[("scale", float("inf")), ("threshold", float("nan")), ("quantile", 1), ("most", 0)],
        *[("keep", 0), ("how", "worst"), ("data", ""), ("unfinished", "mark"), ("rounds", "last")],
    ],
)
def test_a_value_out_of_range_is_refused_by_the_type_of_its_option(name, value):
    with pytest.raises(pydantic.ValidationError, match=name):
        pydantic.TypeAdapter(Pair).validate_python({"data": "f", **BEST, name: value})
