"""Damaged data: rows as they are in the file, or refused in words."""

import csv
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lib.damage import JSON_WORDS, odd_bytes, odd_json, odd_text
from lib.fuzz import fuzz, limited
from lib.tokenizers import CHATML, END, make_tokenizer

from jaxalign.core import layouts
from jaxalign.data.encode import Encoder
from jaxalign.data.tokenize import load_examples
from jaxalign.settings import Data

pytestmark = pytest.mark.slow

TOKENIZER = make_tokenizer(chat_template=CHATML)
ENCODER = Encoder(TOKENIZER, stops=TOKENIZER.convert_tokens_to_ids([END]))
ASKED = {"role": "user", "content": "Hi there"}
YES, NO = ({"role": "assistant", "content": text} for text in ("yes", "no"))
ROWS = {
    layouts.PAIRS: [
        {"prompt": "Hi", "chosen": " yes", "rejected": " no"},
        {"prompt": [ASKED], "chosen": [YES], "rejected": [NO]},
        {"chosen": [ASKED, YES], "rejected": [ASKED, NO], "weight": 2.0},
        {"conversations": [{"from": "human", "value": "Hi"}], "chosen": [YES], "rejected": [NO]},
    ],
    layouts.LABELED: [
        {"prompt": "Hi", "completion": " yes", "label": True},
        {"prompt": [ASKED], "completion": [YES], "label": 0},
    ],
    layouts.DEMOS: [
        {"prompt": "Hi", "completion": " yes"},
        {"messages": [ASKED, YES, ASKED, NO]},
        {"messages": [ASKED, YES], "tools": [], "chat_template_kwargs": {"x": 1}},
    ],
}


def as_csv(rows):
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), extrasaction="ignore")
    writer.writeheader()
    cells = [{k: v if isinstance(v, str) else json.dumps(v) for k, v in r.items()} for r in rows]
    writer.writerows(cells)
    return out.getvalue()


def as_parquet(rows):
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


@st.composite
def files(draw):
    """(name, bytes, layout) of a data file."""
    layout = draw(st.sampled_from(list(ROWS)))
    row = draw(st.sampled_from(ROWS[layout]))
    rows = draw(st.sampled_from(([row], [row, row], [row] * 5)))
    kind = draw(
        st.sampled_from(("a.jsonl", "a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.parquet"))
    )
    if kind == "a.json":
        return kind, draw(odd_json(rows)), layout
    if kind == "a.parquet":
        return kind, draw(odd_bytes(as_parquet(rows))), layout
    if kind == "a.csv":
        return kind, draw(odd_text(as_csv(rows), JSON_WORDS)).encode("utf-8", "replace"), layout
    lines = [
        draw(odd_json(row)) if i == 0 else json.dumps(row).encode() for i, row in enumerate(rows)
    ]
    data = b"\n".join(lines)
    if kind == "a.jsonl.gz":
        data = gzip.compress(data, mtime=0)
        data = draw(odd_bytes(data)) if draw(st.booleans()) else data
    return kind, data, layout


def test_a_damaged_data_file_is_read_or_refused(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")

    @fuzz(0.3)
    @given(files())
    def check(case):
        name, data, layout = case
        path = folder / name
        path.write_bytes(data)
        with limited() as refused:
            found = load_examples(
                Data(path=str(path), skip_empty=True), str(path), "train", ENCODER, layout, seed=0
            )
        if not refused:
            look_again(name, data, found)

    check()


def look_again(name, data, found):
    """Every scored text of an accepted file of JSON is in a row that a strict reader accepts."""
    if name not in ("a.jsonl", "a.json"):
        return
    text = data.decode("utf-8-sig")
    kinds = [text] if name == "a.json" else [line for line in text.split("\n") if line.strip()]
    strings = [
        s
        for line in kinds
        for s in texts_of(json.loads(line, object_pairs_hook=once, parse_constant=refuse))
    ]
    for example in found:
        for branch in example.branches:
            said = (
                ENCODER.tokenizer.decode(branch.ids[branch.scored])
                .replace(END, "")
                .replace("</s>", "")
            )
            assert branch.scored.any()
            assert any(said.strip() in s or s.strip() in said for s in strings), said


def once(pairs):
    assert len({k for k, _ in pairs}) == len(pairs), "a key twice"
    return dict(pairs)


def refuse(word):
    raise AssertionError(f"{word} was accepted")


def texts_of(value):
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [s for x in value for s in texts_of(x)] if isinstance(value, list) else []
