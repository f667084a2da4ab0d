"""What an inspection says of a data set."""

import json

import numpy as np
import pytest
from lib.rows import CHAT_A, CHAT_Q, DEMO, LABELED, PAIR, PLAIN, load, pair, words, write
from lib.tokenizers import CHATML, END, make_tokenizer

from jaxalign.core import layouts
from jaxalign.data import inspect
from jaxalign.data.encode import Encoder
from jaxalign.data.loader import Loader
from jaxalign.errors import UserError
from jaxalign.settings import Data

GROUP = {"prompt": "Q", "responses": [" yes", " no"]}
CHAT = make_tokenizer(chat_template=CHATML)


def inspected(folder, *rows, layout=layouts.PAIRS, tokenizer=PLAIN, batch_size=64, **changes):
    examples = load(folder, *rows, layout=layout, tokenizer=tokenizer, **changes)
    settings, encoder = Data(path="", **changes), Encoder(tokenizer)
    encoder.all_stops()
    loader = Loader(
        examples,
        batch_size=min(batch_size, len(examples)),
        microbatches=1,
        shards=1,
        row_length=settings.row_length,
        shapes=settings.shapes,
        seed=0,
    )
    return inspect.inspect_examples(examples, (), encoder, layout, loader, 2)


def row(record, layout=layouts.PAIRS, **changes):
    return inspect.inspect_row(
        record, "line 1", Data(path="", **changes), Encoder(PLAIN), layout, ()
    )


@pytest.mark.parametrize(
    ("record", "layout"),
    [
        (PAIR, layouts.PAIRS),
        (GROUP, layouts.RANKED),
        (LABELED, layouts.LABELED),
        (DEMO, layouts.DEMOS),
        ({"text": "Q"}, layouts.DEMOS),
        ({"messages": CHAT_Q + CHAT_A}, layouts.DEMOS),
        ({"chosen": "\n\nAssistant: a", "rejected": "\n\nHuman: b"}, layouts.PAIRS),
    ],
)
def test_the_layout_is_found_from_the_columns(record, layout):
    assert inspect.find_layout(record, "line 1", Data(path="")) == layout


def test_a_column_is_read_or_read_under_another_name_or_ignored():
    record = {
        "question": "Q",
        "prompt": "P",
        "completion": " yes",
        "id": 3,
        "weight": 2,
        "none": None,
    }
    settings = Data(path="", columns={"prompt": "question"})
    found = inspect.find_columns(record, "line 1", settings, layouts.DEMOS, ())
    assert {c.name: c.read_as for c in found} == {
        "question": "prompt",
        "prompt": None,
        "completion": "completion",
        "id": None,
        "weight": "weight",
        "none": None,
    }


def test_a_column_that_the_objective_wants_is_read():
    record = PAIR | {"margin": 1.0, "other": 1.0}
    found = inspect.find_columns(record, "line 1", Data(path=""), layouts.PAIRS, ("margin",))
    assert {c.name for c in found if c.read_as} == {*PAIR, "margin"}


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("a", "text"),
        (True, "true or false"),
        (1.5, "number"),
        (None, "null"),
        ({}, "object"),
        ([], "list of 0"),
        (["a", "b"], "list of 2: text, ..."),
        (CHAT_Q + CHAT_A, "2 messages"),
    ],
)
def test_a_column_has_a_kind(value, kind):
    (*_, column) = inspect.find_columns(
        PAIR | {"x": value}, "line 1", Data(path=""), layouts.PAIRS, ()
    )
    assert column.kind == kind


def test_lengths_count_tokens_with_the_stop_token(tmp_path):
    rows = [pair("Hi", words(n), words(2 * n)) for n in range(1, 11)]
    lengths = inspected(tmp_path, *rows).lengths
    quantiles = {k: (v.min, v.p50, v.p90, v.max) for k, v in lengths.items()}
    assert quantiles == {
        "prompt": (1, 1, 1, 1),
        "chosen": (2, 6, 10, 11),
        "rejected": (3, 11, 19, 21),
        "longest": (4, 12, 20, 22),
        "whole": (6, 18, 30, 33),
    }


def test_a_histogram_counts_every_example(tmp_path):
    found = inspected(tmp_path, *(pair("Hi", words(n)) for n in range(1, 9))).lengths
    assert {sum(lengths.histogram) for lengths in found.values()} == {8}
    assert found["prompt"].histogram[-1] == 8


def test_slots_are_those_of_the_batches_of_training(tmp_path):
    rows = [pair(f"Hi{words(n)}", words(3 * n)) for n in range(1, 21)]
    packing = inspected(tmp_path, *rows, batch_size=5, row_length=128, shapes=2).packing
    loader = Loader(
        load(tmp_path, *rows),
        batch_size=5,
        microbatches=1,
        shards=1,
        row_length=128,
        shapes=2,
        seed=0,
    )
    batches = list(loader.batches(0, 4))
    assert packing.batches == 4
    assert packing.slots == sum(batch.ids.size for batch in batches)
    assert packing.tokens == sum(int((batch.segment > 0).sum()) for batch in batches)


def test_unpacked_tokens_have_a_prompt_for_each_response(tmp_path):
    # (prompt, chosen, rejected): (1, 2, 4) and (3, 2, 2) tokens.
    rows = [pair("Hi", " yes", words(3)), pair("Hi there you", " yes", " no")]
    packing = inspected(tmp_path, *rows).packing
    assert packing.batch_size == 2
    assert packing.padded == 4 * 5
    assert packing.unshared == (3 + 5) + (5 + 5)
    assert packing.tokens == 7 + 7
    assert packing.shared == pytest.approx(1 - 14 / 18)
    assert packing.times == 20 / packing.slots


def test_a_repeated_example_names_the_earlier_one(tmp_path):
    found = inspected(tmp_path, pair("Hi"), pair("no"), pair("Hi", " no", " yes"), pair("no"))
    assert (found.same_example.count, found.same_example.distinct) == (1, 3)
    assert str(found.same_example.first).endswith("line 4")
    assert str(found.same_example.of).endswith("line 2")
    assert (found.same_prompt.count, found.same_prompt.distinct) == (2, 2)
    assert str(found.same_prompt.first).endswith("line 3")


def test_a_pair_of_labeled_responses_is_no_repeat(tmp_path):
    found = inspected(tmp_path, pair("Hi"), pair("no"), layout=layouts.LABELED)
    assert (found.same_prompt.count, found.same_prompt.distinct) == (0, 2)


@pytest.mark.parametrize("adds_bos", [False, True])
def test_an_empty_prompt_repeats_no_other(tmp_path, adds_bos):
    rows = [{"text": "Hi there"}, {"text": "no yes"}]
    tokenizer = make_tokenizer(adds_bos=adds_bos)
    found = inspected(tmp_path, *rows, layout=layouts.DEMOS, tokenizer=tokenizer)
    assert (found.same_prompt.count, found.same_prompt.distinct) == (0, 0)


def test_a_response_that_was_cut_does_not_end_with_a_stop_token(tmp_path):
    found = inspected(tmp_path, pair("Hi"), pair("no", words(40)), max_length=16)
    assert (found.stopped, found.not_stopped) == (3, 1)
    assert found.stop_tokens == {"</s>": PLAIN.eos_token_id}


def test_context_scored_tokens_and_stop_tokens_are_told_apart(tmp_path):
    chat = [*CHAT_Q, *CHAT_A, *CHAT_Q, *CHAT_A]
    found = inspected(tmp_path, {"messages": chat}, layout=layouts.DEMOS, tokenizer=CHAT)
    (response,) = found.examples[0].responses
    asked = "\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
    answer = [("yes", "scored"), (END, "stop")]
    assert [(p.text, p.kind) for p in response.pieces] == [*answer, (asked, "context"), *answer]
    assert found.examples[0].prompt == "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"


def test_an_inspection_is_plain_values(tmp_path):
    found = inspected(tmp_path, pair("Hi"), pair("no")).to_json()
    assert json.loads(json.dumps(found)).keys() == found.keys()
    assert found["counts"]["kept"] == 2
    assert found["scored"] == 8


def test_scored_tokens_are_those_of_training(tmp_path):
    rows = [pair("Hi", words(n)) for n in range(1, 5)]
    found = inspected(tmp_path, *rows)
    assert found.scored == int(load(tmp_path, *rows).offsets[-1])
    assert found.tokens == int(np.sum([e.length for e in load(tmp_path, *rows)]))


def test_a_row_shows_its_example():
    found = row(PAIR | {"id": 7})
    assert found.raw["id"] == 7
    assert [r.name for r in found.examples[0].responses] == ["chosen", "rejected"]
    assert found.refused is None


def test_a_row_that_is_dropped_says_why():
    found = row(PAIR | {"rejected": " yes"})
    assert found.examples == ()
    assert found.counts is not None
    assert found.counts.dropped == {"identical responses": 1}


def test_a_row_that_is_refused_says_why():
    found = row(PAIR | {"chosen": " "})
    assert found.counts is None
    assert found.refused == "line 1: 'chosen' is empty; drop it or set data.skip_empty"
    assert {c.name for c in found.columns} == set(PAIR)


def test_a_row_has_the_number_of_its_line(tmp_path):
    path = write(tmp_path, DEMO, "", DEMO | {"id": 3})
    where, found = inspect.find_row(path, "", 3)
    assert (where, found["id"]) == (f"{path} line 3", 3)


def test_a_row_that_is_not_there_is_refused_with_the_last(tmp_path):
    with pytest.raises(UserError, match=r"it has no row 2; the last is .* line 1$"):
        inspect.find_row(write(tmp_path, DEMO), "", 2)


def test_a_data_set_without_rows_is_refused(tmp_path):
    with pytest.raises(UserError, match="it has no rows"):
        inspect.first_row(write(tmp_path, ""), "")
