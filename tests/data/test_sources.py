"""Files of every kind give the same rows."""

import gzip
import json

import datasets
import pyarrow as pa
import pytest
from pyarrow import csv, ipc, parquet

from jaxalign.core import layouts
from jaxalign.data.read import read_records
from jaxalign.data.sources import local_files, raw_records
from jaxalign.data.tally import Tally
from jaxalign.errors import UserError
from jaxalign.settings import Data

ROWS = [
    {"prompt": "12", "completion": 'a, "b"\nc', "label": True, "margin": 0.5},
    {"prompt": "Q", "completion": "d", "label": False, "margin": 2.0},
]
CELLS = [
    {"prompt": "12", "completion": 'a, "b"\nc', "label": "true", "margin": "0.5"},
    {"prompt": "Q", "completion": "d", "label": "false", "margin": "2"},
]
CHAT = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", "name": "me"}]


def lines(rows):
    return "\n".join(map(json.dumps, rows))


def write_jsonl(path):
    path.write_text(lines(ROWS))


def write_jsonl_gz(path):
    path.write_bytes(gzip.compress(lines(ROWS).encode()))


def write_json(path):
    path.write_text("\ufeff" + json.dumps(ROWS, indent=1), encoding="utf-8")


def write_json_gz(path):
    path.write_bytes(gzip.compress(json.dumps(ROWS).encode()))


def write_csv(path):
    csv.write_csv(pa.Table.from_pylist(ROWS), path)


def write_parquet(path):
    parquet.write_table(pa.Table.from_pylist(ROWS), path)


def write_stream(path):
    table = pa.Table.from_pylist(ROWS)
    with ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)


def write_file(path):
    table = pa.Table.from_pylist(ROWS)
    with ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


KINDS = [
    ("a.jsonl", write_jsonl),
    ("a.json", write_jsonl),
    ("a.json", write_json),
    ("a.jsonl.gz", write_jsonl_gz),
    ("a.json.gz", write_json_gz),
    ("a.json.gz", write_jsonl_gz),
    ("a.csv", write_csv),
    ("a.parquet", write_parquet),
    ("a.arrow", write_stream),
    ("a.arrow", write_file),
]


def rows_of(path, split="train"):
    return [row for _, row in raw_records(str(path), split)]


@pytest.mark.parametrize(("name", "write"), KINDS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name, write):
    write(tmp_path / name)
    wanted = CELLS if name == "a.csv" else ROWS
    assert rows_of(tmp_path / name) == wanted
    (first, _), (second, _) = raw_records(str(tmp_path / name), "")
    assert first.startswith(f"{tmp_path / name} ")
    assert (first[-1], second[-1]) == ("1", "2")


def test_a_glob_is_read_in_the_order_of_names(tmp_path):
    for name, row in zip(("b", "a"), ROWS, strict=True):
        (tmp_path / f"{name}.jsonl").write_text(lines([row]))
    (tmp_path / "folder.jsonl").mkdir()
    assert [file.name for file in local_files(str(tmp_path / "*")) or ()] == ["a.jsonl", "b.jsonl"]
    assert rows_of(tmp_path / "*.jsonl") == ROWS[::-1]
    with pytest.raises(UserError, match=r"\*\.csv: no file has such a name"):
        rows_of(tmp_path / "*.csv")


def test_a_folder_that_save_to_disk_wrote_is_read(tmp_path):
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "one")
    assert rows_of(tmp_path / "one") == ROWS
    datasets.DatasetDict(train=data, test=data.select([1])).save_to_disk(tmp_path / "both")
    assert rows_of(tmp_path / "both", "test") == ROWS[1:]
    with pytest.raises(UserError, match="split 'dev': it has the splits train, test"):
        rows_of(tmp_path / "both", "dev")


def test_nulls_that_arrow_adds_are_left_out(tmp_path):
    rows = [{"messages": CHAT, "tools": [{"a": 1}]}, {"messages": CHAT[:1], "tools": [{"b": 2}]}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert rows_of(tmp_path / "a.parquet") == rows


def test_pairs_of_chats_with_columns_of_scores_and_nulls_are_read(tmp_path):
    def chat(answer):
        return [{"role": "user", "content": "Q"}, {"role": "assistant", "content": answer}]

    rows = [
        {
            "prompt": "Q",
            "prompt_id": "1",
            "chosen": chat("yes"),
            "rejected": chat("no"),
            "messages": None,
            "score_chosen": 8.5,
            "score_rejected": score,
        }
        for score in (3.0, None)
    ]
    path = str(tmp_path / "a.parquet")
    parquet.write_table(pa.Table.from_pylist(rows), path)
    settings = Data(path=path, limit=1)
    (record,) = read_records(settings, path, "", layouts.PAIRS, Tally(), ["scores"])
    assert record.columns == {"scores": (8.5, 3.0)}
    assert [turn["content"] for (turn,) in record.responses] == ["yes", "no"]
    with pytest.raises(UserError, match="row 2: no 'score_rejected'"):
        list(read_records(Data(path=path), path, "", layouts.PAIRS, Tally(), ["scores"]))


def test_json_text_in_a_csv_file_is_read(tmp_path):
    rows = [{"messages": json.dumps(CHAT), "tools": "[]"}]
    csv.write_csv(pa.Table.from_pylist(rows), tmp_path / "a.csv")
    assert rows_of(tmp_path / "a.csv") == [{"messages": CHAT, "tools": []}]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.json", b"[{}, 3]", "a.json entry 2: got a JSON int; wanted an object"),
        ("a.json", b"[{", "a.json: not JSON"),
        ("a.json", "[{}]".encode("utf-16"), "a.json line 1: not JSON"),
        ("a.csv", b"prompt,text\na,b\na\n", "a.csv row 2: number of cells is 1; the first line"),
        (
            "a.csv",
            b'prompt,text\na,"b\nc,d\n',
            "a.csv row 1: not CSV .unexpected end of data.; put",
        ),
        ("a.csv", b"prompt,prompt\na,b\n", "a.csv: has two columns 'prompt'; rename or remove"),
        ("a.csv", "prompt\né\n".encode("latin-1"), "a.csv: not UTF-8 .*; save it as UTF-8"),
        ("a.csv.gz", gzip.compress(b"prompt\na\n")[:-9], "row 2: not a whole gzip file"),
        ("a.jsonl", b'{"a": 1, "a": 2}', "a.jsonl line 1: not JSON .it has the key 'a' twice"),
        ("a.json", b'[{"a": 1, "a": 2}]', "a.json: not JSON .it has the key 'a' twice"),
        ("a.csv", b"messages\n[{\n", "a.csv row 1: 'messages' is not JSON"),
        ("a.arrow", b"nonsense", "a.arrow: not a whole arrow file"),
        ("a.parquet", b"PAR1", "a.parquet: not a whole parquet file"),
        ("a.txt", b"", "a.txt: cannot read this kind of file; wanted .jsonl, .jsonl.gz, .json"),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        rows_of(tmp_path / name)


@pytest.mark.parametrize("text", ["007", "1e5", "NaN", "null", "NA", "true", "2020-01-01", "1_0"])
def test_a_text_of_a_csv_file_stays_the_text_under_every_name(tmp_path, text):
    (tmp_path / "a.csv").write_text(f"question,completion\n{text},{text}\n")
    path = str(tmp_path / "a.csv")
    settings = Data(path=path, columns={"prompt": "question"})
    (record,) = read_records(settings, path, "", layouts.DEMOS, Tally())
    assert (record.prompt, record.responses) == (text, (text,))


def test_a_cell_of_a_csv_file_may_be_long(tmp_path):
    (tmp_path / "a.csv").write_text("text\n" + "ab " * 700_000)
    assert len(rows_of(tmp_path / "a.csv")[0]["text"]) == 2_100_000


@pytest.mark.parametrize(
    ("text", "label"), [("true", 1), ("False", 0), ("1", 1), ("0", 0), ("1.0", 1)]
)
def test_a_cell_of_a_csv_file_is_read_as_a_label(tmp_path, text, label):
    (tmp_path / "a.csv").write_text(f"prompt,completion,label\nQ,yes,{text}\n")
    path = str(tmp_path / "a.csv")
    (record,) = read_records(Data(path=path), path, "", layouts.LABELED, Tally())
    assert record.label == label


@pytest.mark.parametrize(("text", "weight"), [("2", 2), ("2.5e-1", 0.25), ("", 1)])
def test_a_cell_of_a_csv_file_is_read_as_a_weight(tmp_path, text, weight):
    (tmp_path / "a.csv").write_text(f"prompt,completion,weight\nQ,yes,{text}\n")
    path = str(tmp_path / "a.csv")
    (record,) = read_records(Data(path=path), path, "", layouts.DEMOS, Tally())
    assert record.weight == weight


@pytest.mark.parametrize("text", ["NaN", "NA", "inf", "heavy", "1_0"])
def test_a_cell_of_a_csv_file_that_is_no_number_is_refused_as_a_weight(tmp_path, text):
    (tmp_path / "a.csv").write_text(f"prompt,completion,weight\nQ,yes,1\nQ,yes,{text}\n")
    path = str(tmp_path / "a.csv")
    with pytest.raises(UserError, match=r"row 2: 'weight' is .*; wanted a finite number"):
        list(read_records(Data(path=path), path, "", layouts.DEMOS, Tally()))


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.jsonl"])
def test_a_null_in_a_renamed_column_counts_as_absent(tmp_path, name):
    rows = [{"text": "a", "w": None}, {"text": "b", "w": 2.0}]
    writers = {"a.csv": csv.write_csv, "a.parquet": parquet.write_table}
    if name in writers:
        writers[name](pa.Table.from_pylist(rows), tmp_path / name)
    else:
        (tmp_path / name).write_text(lines(rows))
    path = str(tmp_path / name)
    settings = Data(path=path, columns={"weight": "w"})
    records = read_records(settings, path, "", layouts.DEMOS, Tally())
    assert [record.weight for record in records] == [1, 2]


def test_two_columns_of_one_name_in_a_table_are_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a.parquet: has two columns 'text'; rename or remove"):
        rows_of(tmp_path / "a.parquet")


def test_a_broken_file_in_a_folder_is_an_error_with_its_cause(tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.csv").write_text('text,label\n1,2\n"open\n')
    with pytest.raises(UserError, match=r"broken: no such file, and as a folder .* EOF inside str"):
        rows_of(tmp_path / "broken")


@pytest.mark.parametrize("other", ["b.csv", "more/b.jsonl"])
def test_a_folder_of_which_datasets_would_read_only_some_files_is_refused(tmp_path, other):
    (tmp_path / "more").mkdir()
    for name in ("train.jsonl", "dataset_info.json", ".hidden.csv", other):
        (tmp_path / name).write_text('{"text": "a"}\n')
    with pytest.raises(UserError, match=r"b\.(csv|jsonl) is of another type .* give a glob"):
        list(raw_records(str(tmp_path), "train"))
    (tmp_path / other).unlink()
    assert [row for _, row in raw_records(str(tmp_path), "train")] == [{"text": "a"}]
