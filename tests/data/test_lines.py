"""Lines and entries of data files are bounded, and no more of them is held than the bound."""

import gzip
import io
import json
import re
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxalign.data.lines import entries
from jaxalign.data.sources import raw_records
from jaxalign.errors import UserError


def read(path, most):
    return [row for _, row in raw_records(str(path), "", max_line=most)]


ROW = {"text": "x" * 5000}
LINE = json.dumps(ROW)
FILES = {
    "a.jsonl": (f'{{"text": "a"}}\n{LINE}\n', "line 2"),
    "a.json": (f'[{{"text": "a"}}, {LINE}]', "entry 2"),
    "a.csv": (f"text\na\n{ROW['text']}\n", "line 3"),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", FILES)
def test_a_long_line_is_refused_by_the_name_of_the_setting(tmp_path, name, packed):
    text, place = FILES[name]
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    assert read(path, 10_000) == [{"text": "a"}, ROW]
    with pytest.raises(UserError, match=rf"{place}: is longer than 1,000 .* raise data\.max_line"):
        read(path, 1000)


def test_a_long_text_of_another_file_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    rows = [{"messages": [{"role": "user", "content": text}]} for text in ("a", "x" * 5000)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert read(path, 10_000) == rows
    with pytest.raises(UserError, match=r"row 2: 'messages\[0\]\.content': is longer than 1,000"):
        read(path, 1000)


def test_a_cell_of_many_lines_is_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text\n"' + "line\n" * 1000 + '"\n')
    with pytest.raises(UserError, match=r"row 1: a cell: is longer than 1,000"):
        read(path, 1000)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.csv.gz"])
def test_a_small_file_with_a_line_of_300_megabytes_takes_little_memory(tmp_path, name):
    path = tmp_path / name
    start = {"a.jsonl.gz": '{"text": "', "a.json.gz": '[{"text": "', "a.csv.gz": "text\n"}[name]
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(start.encode())
        for _ in range(300):
            file.write(b"x" * 2**20)
    assert path.stat().st_size < 2_000_000
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="is longer than 1,048,576"):
            read(path, 2**20)
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_a_list_is_read_entry_by_entry_as_it_is(size):
    values = [{"a": "é]},{" * 9, "b": [12.5, {}]}, [], {}, "x", None]
    text = json.dumps(values, ensure_ascii=False, indent=1)

    class Slow(io.StringIO):
        def read(self, count):
            return super().read(min(count, size))

    assert list(entries(Slow(text), 1000, "a.json")) == values
    assert list(entries(Slow(" [ ] \n"), 1000, "a.json")) == []


WRONG = [
    ("[{}, {}", "after entry 2 wanted ']', got its end"),
    ("[{} 2]", "after entry 1 wanted ']', got '2'"),
    ("[{},]", "Expecting value"),
    ("[{}] 2", "text follows its list"),
    ('[{"a": 1, "a": 2}]', "the key 'a' twice"),
    ('[{"a": NaN}]', "'a' is NaN"),
    ("[" * 5000, "nests more than 100"),
]


@pytest.mark.parametrize("text, message", WRONG, ids=[message for _, message in WRONG])
def test_a_list_that_is_no_json_is_refused(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        list(entries_of(path))


def entries_of(path):
    for _, row in raw_records(str(path), ""):
        yield row


def test_a_parquet_file_damaged_anywhere_is_one_line_with_its_name(tmp_path):
    whole = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{"text": "abc", "n": i} for i in range(50)]), whole)
    path = tmp_path / "a.parquet"
    data = whole.getvalue()
    for at in range(0, len(data), len(data) // 60):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        said = refusal(path)
        assert said is None or (said.startswith(str(path)) and "\n" not in said)


def refusal(path):
    """What a `UserError` says; None if there is none."""
    try:
        list(entries_of(path))
    except UserError as error:
        return str(error)
    return None
