from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lib.rows import PLAIN, load, pair, texts, words
from lib.tokenizers import EOS, make_tokenizer

from jaxalign.core import layouts
from jaxalign.data.cut import Limits, make_example
from jaxalign.data.encode import Encoded
from jaxalign.data.examples import preview
from jaxalign.data.records import make_record
from jaxalign.data.tally import Tally
from jaxalign.data.tokenize import CHUNK
from jaxalign.errors import UserError
from jaxalign.settings import Data

WITH_BOS = make_tokenizer(adds_bos=True)
PAD_IS_EOS = make_tokenizer(pad_token=EOS)
NO_EOS = make_tokenizer()
NO_EOS.eos_token = None


def one(folder, prompt, chosen=" yes", rejected=" no", **options):
    (item,) = load(folder, pair(prompt, chosen, rejected), **options)
    return item


# Where the prompt ends


def test_a_prompt_that_ends_inside_a_word_ends_before_it(tmp_path):
    item = one(tmp_path, "Could you say somethi", "ng nice", "ng green")
    assert texts(item) == ["Could you say", " something nice</s>", " something green</s>"]


def test_a_space_at_the_end_of_the_prompt_moves_to_the_responses(tmp_path):
    item = one(tmp_path, "Could you say ", "Hi", "no")
    assert texts(item) == ["Could you say", " Hi</s>", " no</s>"]


def test_both_responses_share_the_shorter_of_their_prompts(tmp_path):
    item = one(tmp_path, "Could you say th", "ere you are", "? no")
    assert texts(item) == ["Could you say", " there you are</s>", " th? no</s>"]


def test_prompt_and_response_are_the_tokens_of_the_joint_text(tmp_path):
    item = one(tmp_path, "Could you say somethi", "ng nice", "ng green")
    joint = np.concatenate([item.prompt, item.branches[0].ids[:-1]])
    assert joint.tolist() == PLAIN("Could you say something nice")["input_ids"]


@given(prompt=st.text(max_size=20), response=st.text(min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_no_byte_is_lost_at_the_boundary(tmp_path_factory, prompt, response):
    record = {"prompt": prompt, "completion": response + "!"}
    folder = tmp_path_factory.mktemp("data")
    (item,) = load(folder, record, layout=layouts.DEMOS)
    assert PLAIN.decode([*item.prompt, *item.branches[0].ids[:-1]]) == prompt + response + "!"


def test_a_boundary_inside_a_character_of_many_bytes_loses_none(tmp_path):
    item = one(tmp_path, "say 👍", "🏽 yes", "🏿 no")
    assert PLAIN.decode([*item.prompt, *item.branches[0].ids]) == "say 👍🏽 yes</s>"


# Special tokens


@pytest.mark.parametrize("tokenizer", [PLAIN, WITH_BOS, PAD_IS_EOS])
def test_eos_is_appended_once_and_scored(tmp_path, tokenizer):
    item = one(tmp_path, "Hi", " yes", tokenizer=tokenizer)
    assert item.branches[0].ids.tolist()[1:] == [tokenizer.eos_token_id]
    assert len(item.scored(0)) == 2


def test_a_text_that_ends_with_eos_gets_no_second_one(tmp_path):
    item = one(tmp_path, "Hi", " yes</s>")
    assert item.branches[0].ids.tolist().count(PLAIN.eos_token_id) == 1


def test_bos_is_put_in_front_where_the_tokenizer_puts_it(tmp_path):
    item = one(tmp_path, "Hi", tokenizer=WITH_BOS)
    assert item.prompt.tolist() == WITH_BOS("Hi")["input_ids"]


def test_bos_is_not_put_in_front_where_the_tokenizer_puts_none(tmp_path):
    assert PLAIN.bos_token_id not in one(tmp_path, "Hi").prompt


def test_a_text_that_begins_with_bos_gets_no_second_one(tmp_path):
    item = one(tmp_path, "<s>Hi", tokenizer=WITH_BOS)
    assert item.prompt.tolist() == WITH_BOS("Hi")["input_ids"]


def test_bos_never_stands_before_a_response(tmp_path):
    item = one(tmp_path, "Hi", tokenizer=WITH_BOS)
    assert all(WITH_BOS.bos_token_id not in ids for ids in (b.ids for b in item.branches))


def test_bos_predicts_the_first_token_of_a_response_without_prompt(tmp_path):
    (item,) = load(tmp_path, {"text": "Hi"}, layout=layouts.DEMOS, tokenizer=WITH_BOS)
    assert (item.prompt.tolist(), len(item.scored(0))) == ([WITH_BOS.bos_token_id], 2)


def test_without_prompt_and_bos_the_first_token_is_not_scored(tmp_path):
    (item,) = load(tmp_path, {"text": "Hi there"}, layout=layouts.DEMOS)
    assert (len(item.prompt), len(item.branches[0].ids), len(item.scored(0))) == (0, 3, 2)


def test_a_row_without_scored_token_is_dropped_and_counted():
    tally, record = Tally(), make_record("", ("x",), "row 1", ("text",))
    first = Encoded([7], ((0, 1),), 0)  # no token precedes it
    limits = Limits.of(Data(path="rows"))
    assert make_example(record, [first], limits, [], ("response",), tally) is None
    assert tally.counts(0, ("response",)).dropped == {"no scored token": 1}


def test_a_tokenizer_without_eos_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"line 1: the tokenizer has no EOS token, .* add an eos_token"
    ):
        one(tmp_path, "Hi", tokenizer=NO_EOS)


# Limits


def test_a_long_prompt_is_cut_on_the_left(tmp_path):
    item = one(tmp_path, "Hi" + words(9), max_prompt=4)
    assert texts(item)[0] == words(4)


def test_a_prompt_cut_on_the_left_keeps_its_bos(tmp_path):
    item = one(tmp_path, "Hi" + words(9), tokenizer=WITH_BOS, max_prompt=4)
    assert texts(item, WITH_BOS)[0] == "<s>" + words(3)


def test_a_long_response_is_cut_on_the_right_and_gets_no_eos_back(tmp_path):
    item = one(tmp_path, "Hi", words(9), max_length=5, max_prompt=4)
    assert texts(item)[1] == words(4)
    assert len(item.scored(0)) == 4


def test_a_prompt_one_token_short_of_the_limit_leaves_one_token_each(tmp_path):
    limits = {"max_length": 5, "max_prompt": 4, "min_response": 1}
    item = one(tmp_path, words(4), " yes Hi", " no Hi", **limits)
    assert texts(item)[1:] == [" yes", " no"]


def test_a_cut_that_leaves_less_than_min_response_drops_the_row(tmp_path):
    records = pair(words(4), " yes Hi", " no Hi"), pair("Hi", " yes", " no")
    data = load(tmp_path, *records, max_length=5, max_prompt=4)
    assert len(data) == 1
    assert data.counts.dropped == {"a cut left too little of a response": 1}


def test_no_sequence_is_longer_than_max_length(tmp_path):
    item = one(tmp_path, words(99), words(99), words(98, " no"), max_length=20, max_prompt=7)
    assert [len(item.prompt) + len(r) for r in (b.ids for b in item.branches)] == [20, 20]


def test_cuts_are_counted_for_chosen_and_rejected_apart(tmp_path):
    records = pair("Hi", words(9)), pair("Hi", words(9), words(9, " no")), pair(words(9))
    counts = load(tmp_path, *records, max_length=6, max_prompt=5, min_response=1).counts
    assert counts.prompt_cut == 1
    assert counts.response_cut == {"chosen": 3, "rejected": 2}


def test_long_rows_are_dropped_and_counted_on_request(tmp_path):
    records = pair("Hi", words(9)), pair(words(9)), pair("Hi")
    data = load(tmp_path, *records, max_length=6, max_prompt=5, too_long="drop")
    assert (len(data), data.counts.dropped) == (1, {"too long": 2})
    assert data.counts.response_cut == {"chosen": 0, "rejected": 0}


def test_a_long_prompt_stops_on_request(tmp_path):
    message = "line 1: prompt has 9 tokens; data.max_prompt is 5; shorten it, raise the limit or"
    with pytest.raises(UserError, match=message):
        one(tmp_path, words(9), max_prompt=5, too_long="error")


def test_a_long_response_stops_on_request(tmp_path):
    message = r"line 1: prompt \+ response has 11 tokens; data.max_length is 6"
    with pytest.raises(UserError, match=message):
        one(tmp_path, "Hi", words(9), max_length=6, max_prompt=5, too_long="error")


def test_a_prompt_limit_that_leaves_no_room_is_refused(tmp_path):
    message = "max_prompt 512 leaves no room for a response in max_length 256, tokens; lower"
    with pytest.raises(UserError, match=message):
        one(tmp_path, "Hi", max_length=256, max_prompt=512)


def test_max_prompt_is_half_of_max_length_by_itself(tmp_path):
    assert len(one(tmp_path, words(99), max_length=20).prompt) == 10


# Rows that teach nothing


def test_identical_responses_are_dropped_and_counted(tmp_path):
    data = load(tmp_path, pair("Hi", " yes", " yes"), pair("Hi"))
    assert (len(data), data.counts.dropped) == (1, {"identical responses": 1})


def test_responses_that_a_cut_makes_identical_are_dropped(tmp_path):
    records = pair("Hi", words(9), words(8)), pair("Hi")
    data = load(tmp_path, *records, max_length=6, max_prompt=5)
    assert (len(data), data.counts.dropped) == (1, {"identical responses": 1})


def test_data_without_an_example_left_is_refused(tmp_path):
    with pytest.raises(UserError, match="no example is left; 1 dropped: identical responses"):
        load(tmp_path, pair("Hi", " yes", " yes"))


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="no example is left; it has no rows"):
        load(tmp_path)


# Examples


def test_labeled_examples_carry_their_label(tmp_path):
    data = load(tmp_path, pair("Hi"), layout=layouts.LABELED)
    assert [item.columns for item in data] == [{"label": 1.0}, {"label": 0.0}]


def test_labels_of_one_kind_only_are_noted(tmp_path):
    record = {"prompt": "Hi", "completion": " yes", "label": True}
    data = load(tmp_path, record, record | {"completion": " no"}, layout=layouts.LABELED)
    assert data.counts.noted == {"all labels are 1": 2}
    both = load(tmp_path, record, record | {"label": False}, layout=layouts.LABELED)
    assert both.counts.noted == {}


def test_demos_carry_no_label(tmp_path):
    record = {"prompt": "Hi", "completion": " yes", "label": True}
    assert load(tmp_path, record, layout=layouts.DEMOS)[0].columns == {}


def test_examples_keep_the_order_and_place_of_their_rows(tmp_path):
    data = load(tmp_path, *(pair(str(n)) for n in range(1, CHUNK + 100)))
    assert [PLAIN.decode(item.prompt) for item in data] == [
        item.where.rsplit(" ")[-1] for item in data
    ]
    assert len(data) == CHUNK + 99


def test_offsets_count_scored_tokens_by_example_then_response(tmp_path):
    data = load(tmp_path, pair("Hi", words(3)), pair("", words(2), words(7)))
    assert data.offsets.tolist() == [0, 4, 6, 8, 15]


def test_the_longest_response_is_rounded_up_to_a_multiple_of_16(tmp_path):
    assert load(tmp_path, pair("Hi", words(15))).max_scored == 16
    assert load(tmp_path, pair("Hi", words(16))).max_scored == 32


def test_the_fingerprint_is_that_of_the_tokens(tmp_path):
    base = load(tmp_path, pair("Hi")).fingerprint
    assert load(tmp_path, pair("Hi") | {"score": 1}).fingerprint == base
    assert len(base) == 64


@pytest.mark.parametrize(
    "record", [pair("Hi there"), pair("Hi", " yes", " yes no"), pair("", "Hi yes", "Hi no")]
)
def test_the_fingerprint_changes_with_any_token_or_length(tmp_path, record):
    assert load(tmp_path, record).fingerprint != load(tmp_path, pair("Hi")).fingerprint


def test_the_fingerprint_changes_with_a_label(tmp_path):
    record = {"prompt": "Hi", "completion": " yes", "label": 1}
    one, other = (
        load(tmp_path, record | {"label": label}, layout=layouts.LABELED).fingerprint
        for label in (0, 1)
    )
    assert one != other


def test_the_report_is_a_table_of_what_and_how_many(tmp_path):
    data = load(tmp_path, pair("Hi", " yes", " yes"), pair("Hi"), pair(words(9)), max_prompt=5)
    assert data.counts.table() == [
        ("data", "examples"),
        ("examples kept", "2"),
        ("dropped: identical responses", "1"),
        ("prompt cut on the left", "1"),
        ("chosen cut on the right, stop token lost", "0"),
        ("rejected cut on the right, stop token lost", "0"),
    ]


def test_a_preview_tells_scored_text_from_the_rest(tmp_path):
    spans = preview(one(tmp_path, "Could you say somethi", "ng nice", "ng green"), PLAIN)
    assert spans == [
        ("Could you say", False),
        (" something nice</s>", True),
        (" something green</s>", True),
    ]


def test_a_preview_shows_a_first_token_without_predictor_as_not_scored(tmp_path):
    (item,) = load(tmp_path, {"text": "Hi there"}, layout=layouts.DEMOS)
    assert preview(item, PLAIN) == [("Hi", False), (" there</s>", True)]


# Mismatched responses


def mismatched(folder, n=12, **options):
    records = [pair(words(k), words(k, " Hi"), words(k, " no")) for k in range(1, n)]
    return load(folder, *records, layout=layouts.MISMATCHED, **options)


def test_mismatched_responses_are_those_of_another_prompt(tmp_path):
    items = mismatched(tmp_path)
    own = {item.branches[0].ids.tobytes(): len(item.prompt) for item in items}
    assert all(own[item.branches[1].ids.tobytes()] != len(item.prompt) for item in items)


def test_mismatched_responses_depend_on_the_seed_alone(tmp_path):
    a, b, other = (mismatched(tmp_path, seed=seed).fingerprint for seed in (1, 1, 2))
    assert a == b != other


def test_a_mismatched_response_is_cut_to_the_room_after_its_new_prompt(tmp_path):
    data = mismatched(tmp_path, 12, max_length=13, max_prompt=12)
    lengths = [len(item.prompt) + len(item.branches[1].ids) for item in data]
    assert max(lengths) == 13
    assert data.counts.response_cut["mismatched"] > 0


def test_one_other_prompt_among_many_equal_ones_is_found(tmp_path):
    records = [pair("Hi", words(k), words(k, " no")) for k in range(1, 30)]
    items = load(tmp_path, *records, pair(" no"), layout=layouts.MISMATCHED)
    of_other = [item.branches[0].ids.tobytes() for item in items[-2:]]
    assert all(item.branches[1].ids.tobytes() in of_other for item in items[:-2])


def test_data_with_one_prompt_has_no_mismatched_responses(tmp_path):
    with pytest.raises(UserError, match="all 2 examples have the same prompt; give data with sev"):
        load(tmp_path, pair("Hi"), layout=layouts.MISMATCHED)


def test_the_preview_shows_context_as_not_scored(tmp_path):
    item = one(tmp_path, "Hi", " yes yes", " no")
    first = item.branches[0]
    scored = np.array([False, *first.scored[1:]])
    item = item._replace(branches=(first._replace(scored=scored), item.branches[1]))
    assert preview(item, PLAIN) == [
        *(("Hi", False), (" yes", False), (" yes</s>", True), (" no</s>", True))
    ]
