from __future__ import annotations

import gzip
import json

import pytest
from lib.rows import CHAT_A, CHAT_B, CHAT_Q, DEMO, LABELED, PAIR, one, read, write

from jaxalign.core import layouts
from jaxalign.data.sources import raw_records
from jaxalign.data.tally import Tally
from jaxalign.errors import UserError


def test_a_pair_has_its_prompt_and_both_responses(tmp_path):
    row = one(tmp_path, PAIR)
    assert row[:4] == ("Q", (" yes", " no"), ("chosen", "rejected"), None)


def test_a_byte_order_mark_and_the_ends_of_lines_of_windows_are_no_text(tmp_path):
    lines = [json.dumps(PAIR), json.dumps(PAIR | {"chosen": "a\u2028b"}, ensure_ascii=False)]
    (tmp_path / "a.jsonl").write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    assert [r.responses[0] for r in read(str(tmp_path / "a.jsonl"))] == [" yes", "a\u2028b"]


def test_blank_lines_are_skipped_but_counted_in_line_numbers(tmp_path):
    rows = read(write(tmp_path, PAIR, "", "  ", PAIR))
    assert [row.where.rsplit("/")[-1] for row in rows] == ["data.jsonl line 1", "data.jsonl line 4"]


def test_gzip_reads_like_plain_text(tmp_path):
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(PAIR).encode()))
    assert read(str(path))[0].prompt == "Q"


def test_parquet_reads_like_json_lines(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = str(tmp_path / "data.parquet")
    pq.write_table(pa.Table.from_pylist([PAIR, PAIR]), path)
    assert [(r.prompt, r.where[-5:]) for r in read(path)] == [("Q", "row 1"), ("Q", "row 2")]


def test_columns_that_hold_null_count_as_missing(tmp_path):
    record = {**DEMO, "chosen": None, "rejected": None, "label": None}
    assert one(tmp_path, record, layouts.DEMOS).responses == (" yes",)


@pytest.mark.parametrize("streams", [False, True])
def test_any_other_path_is_a_data_set_of_the_hub(monkeypatch, streams):
    import datasets

    def load(path, split, streaming):
        assert (path, split, streaming) == ("owner/name", "test", streams)
        return iter([PAIR])

    monkeypatch.setattr(datasets, "load_dataset", load)
    rows = raw_records("owner/name", "test", streaming=streams)
    assert list(rows) == [("owner/name [test] row 1", PAIR)]


def test_limit_stops_reading(tmp_path):
    assert len(read(write(tmp_path, PAIR, PAIR, "broken"), limit=2)) == 2


def test_text_is_a_demo_without_prompt(tmp_path):
    assert one(tmp_path, {"text": "all"}, layouts.DEMOS)[:2] == ("", ("all",))


@pytest.mark.parametrize("label", [True, 1, 1.0])
def test_labels_are_booleans_or_0_and_1(tmp_path, label):
    assert one(tmp_path, LABELED | {"label": label}, layouts.LABELED).label == 1.0


def test_unknown_columns_of_a_row_are_ignored(tmp_path):
    assert one(tmp_path, PAIR | {"score": 3}).prompt == "Q"


# Conversions between kinds of data


def test_demos_of_pairs_are_the_chosen_responses(tmp_path):
    row = one(tmp_path, PAIR, layouts.DEMOS)
    assert (row.responses, row.label) == ((" yes",), None)


def test_demos_of_labeled_rows_are_the_desirable_ones(tmp_path):
    tally = Tally()
    rows = read(write(tmp_path, LABELED, LABELED | {"label": 0}), layouts.DEMOS, tally)
    assert [(row.responses, row.label) for row in rows] == [((" yes",), None)]
    assert tally.dropped == {"label is 0": 1}


@pytest.mark.parametrize("layout", [layouts.LABELED, layouts.MISMATCHED])
def test_labeled_rows_of_a_pair_are_its_two_responses(tmp_path, layout):
    rows = read(write(tmp_path, PAIR), layout)
    assert [(r.responses, r.label) for r in rows] == [((" yes",), 1.0), ((" no",), 0.0)]


def test_a_pair_of_equal_responses_gives_no_labeled_rows(tmp_path):
    tally = Tally()
    assert read(write(tmp_path, PAIR | {"rejected": " yes"}), layouts.LABELED, tally) == []
    assert tally.dropped == {"identical responses": 1}


def test_pairs_cannot_be_made_of_labeled_rows(tmp_path):
    with pytest.raises(UserError, match="line 1: the objective needs 'chosen' and 'rejected'; got"):
        one(tmp_path, LABELED)


def test_labels_cannot_be_made_of_demos(tmp_path):
    with pytest.raises(UserError, match="line 1: the objective needs a 'label', or pairs; got"):
        one(tmp_path, DEMO, layouts.LABELED)


# Transcripts


def hh(*turns):
    return "".join(f"\n\n{who}: {text}" for who, text in turns)


def test_the_prompt_of_transcripts_ends_after_the_last_shared_assistant_turn(tmp_path):
    start = hh(("Human", "hi"), ("Assistant", "yes?"), ("Human", "why"))
    record = {"chosen": start + "\n\nAssistant: green", "rejected": start + "\n\nAssistant: grey"}
    row = one(tmp_path, record)
    assert row[:2] == (start + "\n\nAssistant:", (" green", " grey"))


def test_a_transcript_that_begins_the_other_is_split_at_the_turn(tmp_path):
    start = hh(("Human", "sky?")) + "\n\nAssistant:"
    record = {"chosen": start + " blue", "rejected": start + " blue and vast"}
    assert one(tmp_path, record).responses == (" blue", " blue and vast")


def test_transcripts_that_share_no_turn_are_dropped_and_counted(tmp_path):
    tally = Tally()
    record = {"chosen": hh(("Human", "a"), ("Assistant", "b"))}
    record["rejected"] = record["chosen"].replace("a", "c", 1)
    assert read(write(tmp_path, record), tally=tally) == []
    assert tally.dropped == {"prompts differ": 1}


def test_transcripts_that_part_before_the_last_turn_are_dropped_and_counted(tmp_path):
    tally = Tally()
    chosen = hh(("Human", "a"), ("Assistant", "b"), ("Human", "c"), ("Assistant", "d"))
    record = {"chosen": chosen, "rejected": chosen.replace("c", "e")}
    assert read(write(tmp_path, record), tally=tally) == []
    assert tally.dropped == {"prompts differ": 1}


def test_transcripts_without_turns_ask_for_a_prompt_column(tmp_path):
    with pytest.raises(UserError, match=r"have no turn .* add a column 'prompt'"):
        one(tmp_path, {"chosen": "The sky is blue", "rejected": "The sky is blue and vast"})


def test_chat_transcripts_are_split_at_the_message_where_they_part(tmp_path):
    row = one(tmp_path, {"chosen": CHAT_Q + CHAT_A, "rejected": CHAT_Q + CHAT_B})
    assert row[:2] == (CHAT_Q, (CHAT_A, CHAT_B))


def test_chat_transcripts_win_over_a_prompt_that_they_repeat(tmp_path):
    record = {"prompt": "Q", "chosen": CHAT_Q + CHAT_A, "rejected": CHAT_Q + CHAT_B}
    assert one(tmp_path, record).prompt == CHAT_Q


def test_chat_transcripts_with_other_questions_are_dropped_and_counted(tmp_path):
    tally = Tally()
    other = [{"role": "user", "content": "R"}]
    record = {"chosen": CHAT_Q + CHAT_A, "rejected": other + CHAT_B}
    assert read(write(tmp_path, record), tally=tally) == []
    assert tally.dropped == {"prompts differ": 1}


def test_text_beside_messages_becomes_a_message_of_its_role(tmp_path):
    row = one(tmp_path, {"prompt": "Q", "chosen": CHAT_A, "rejected": "no"})
    assert row[:2] == (CHAT_Q, (CHAT_A, CHAT_B))


# What is wrong with the data, in words


@pytest.mark.parametrize("name", ["chosen", "rejected"])
@pytest.mark.parametrize("empty", ["", "  \n", [{"role": "assistant", "content": ""}]])
def test_an_empty_response_stops_with_its_line_and_column(tmp_path, name, empty):
    message = f"data.jsonl line 1: '{name}' is empty; drop it or set data.skip_empty"
    with pytest.raises(UserError, match=message):
        one(tmp_path, PAIR | {name: empty})


def test_empty_responses_are_dropped_and_counted_on_request(tmp_path):
    tally = Tally()
    path = write(tmp_path, PAIR | {"chosen": ""}, PAIR)
    assert len(read(path, tally=tally, skip_empty=True)) == 1
    assert tally.dropped == {"empty response": 1}


def test_an_empty_rejected_response_does_not_matter_to_demos(tmp_path):
    assert one(tmp_path, PAIR | {"rejected": ""}, layouts.DEMOS).responses == (" yes",)


def test_broken_json_stops_with_its_line(tmp_path):
    with pytest.raises(UserError, match=r"data.jsonl line 2: not JSON \(.*one object a line"):
        read(write(tmp_path, PAIR, '{"prompt": '))


def test_bytes_that_are_not_utf8_stop_with_their_line(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"text": "\xff"}')
    with pytest.raises(UserError, match=r"data.jsonl line 1: not JSON \('utf-8'"):
        read(str(path), layouts.DEMOS)


def test_json_that_is_no_object_stops_with_its_line(tmp_path):
    with pytest.raises(UserError, match="line 1: got a JSON list; wanted an object"):
        read(write(tmp_path, "[1]"))


def test_a_torn_gzip_file_stops_with_its_line(tmp_path):
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(PAIR).encode())[:-12])
    with pytest.raises(UserError, match=r"line 1: not a whole gzip file .*fetch it again"):
        read(str(path))


def test_a_file_that_is_no_parquet_is_told_so(tmp_path):
    path = write(tmp_path, "nothing of the kind", name="data.parquet")
    with pytest.raises(UserError, match=r"data.parquet: not a whole parquet file .*fetch it again"):
        read(path)


def test_a_missing_file_names_its_full_path_and_the_near_one(tmp_path):
    write(tmp_path, PAIR, name="train.jsonl")
    path = str(tmp_path / "trian.jsonl")
    with pytest.raises(UserError, match=f"no such file; looked for {path}; did you mean 'train"):
        read(path)


def test_a_file_of_another_kind_names_the_kinds_that_can_be_read(tmp_path):
    path = write(tmp_path, "a,b", name="data.txt")
    with pytest.raises(UserError, match=r"cannot read this kind of file; wanted \.jsonl"):
        read(path)


def test_a_data_set_the_hub_does_not_have_is_told_with_its_split(monkeypatch):
    import datasets

    def load(path, split, streaming):
        raise FileNotFoundError("not there")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UserError, match=r"owner/name: no such file, .* split 'test': not there"):
        read("owner/name", split="test")


def test_a_missing_column_names_the_near_one(tmp_path):
    message = "line 1: no 'rejected'; the columns are .*; did you mean 'rejectd'"
    with pytest.raises(UserError, match=message):
        one(tmp_path, {"prompt": "Q", "chosen": "a", "rejectd": "b"})


def test_a_missing_column_lists_the_columns_there_are(tmp_path):
    with pytest.raises(UserError, match=r"no 'completion'; the columns are 'prompt', 'label'$"):
        one(tmp_path, {"prompt": "Q", "label": 1}, layouts.LABELED)


def test_unknown_columns_list_the_known_schemas(tmp_path):
    with pytest.raises(UserError, match="no known columns; got 'a'; wanted one of: prompt/chosen"):
        one(tmp_path, {"a": 1})


def test_a_misspelt_column_names_the_known_one(tmp_path):
    with pytest.raises(UserError, match=r"no known columns; .* did you mean 'completion'"):
        one(tmp_path, {"prompt": "Q", "completions": "a"})


@pytest.mark.parametrize("label", ["true", "desirable", -1, 0.7, [1]])
def test_a_label_that_is_neither_0_nor_1_is_refused(tmp_path, label):
    with pytest.raises(UserError, match=r"line 1: 'label' is .*; wanted true, false, 1 or 0"):
        one(tmp_path, LABELED | {"label": label}, layouts.LABELED)


@pytest.mark.parametrize("record", [LABELED | {"label": None}, DEMO | {"prompt": None}])
def test_null_where_a_value_is_needed_is_refused(tmp_path, record):
    missing = next(name for name, value in record.items() if value is None)
    with pytest.raises(UserError, match=rf"line 1: .*'{missing}'"):
        one(tmp_path, record, layouts.LABELED)


@pytest.mark.parametrize("value", [3, ["a"], [{"who": "human"}, 3]])
def test_a_field_that_is_neither_text_nor_messages_is_refused(tmp_path, value):
    with pytest.raises(UserError, match="line 1: 'prompt' is neither text nor messages; got"):
        one(tmp_path, PAIR | {"prompt": value})


def test_messages_as_plain_text_are_refused(tmp_path):
    with pytest.raises(
        UserError, match="'text' holds messages; wanted text; call the column 'mess"
    ):
        one(tmp_path, {"text": CHAT_A}, layouts.DEMOS)


def test_half_a_surrogate_pair_is_refused(tmp_path):
    path = write(tmp_path, '{"text": "ab\\ud83d"}')
    with pytest.raises(UserError, match="'text' holds half a surrogate pair at character 2"):
        read(path, layouts.DEMOS)
