"""Examples in memory and on disk."""

import datetime
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lib.packing import in_spans, make_example
from lib.rows import PLAIN

from jaxalign.core.layouts import DEMOS, MISMATCHED, PAIRS
from jaxalign.data import borrow, tokenize
from jaxalign.data.encode import Encoder
from jaxalign.data.examples import RowCounts
from jaxalign.data.keys import data_key
from jaxalign.data.store import Examples, Part
from jaxalign.data.stored import Store, stored_examples
from jaxalign.data.tokenize import load_examples
from jaxalign.errors import RunError, UserError
from jaxalign.settings import Data

TOKENS = st.integers(1, 500)


@st.composite
def data_sets(draw):
    """Examples of any lengths, two responses each, some in several spans and branches."""
    items = []
    for i in range(draw(st.integers(1, 9))):
        prompt = draw(st.lists(TOKENS, max_size=5))
        answers = [draw(st.lists(TOKENS, min_size=2, max_size=6)) for _ in range(2)]
        item = make_example(prompt, *answers, where=f"row {i}", margin=float(i))
        item = item._replace(weight=float(draw(st.integers(1, 3))))
        items.append(in_spans(item, np.random.default_rng(i)) if draw(st.booleans()) else item)
    return items


def plain(item):
    branches = [(b.ids.tolist(), b.scored.tolist(), b.response) for b in item.branches]
    return item.prompt.tolist(), branches, item.columns, item.where, item.weight


@given(data_sets(), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_examples_come_back_from_memory_and_from_disk(tmp_path_factory, items, size):
    folder = tmp_path_factory.mktemp("store")
    parts = [Part.of(items[i : i + size]) for i in range(0, len(items), size)]
    for i, part in enumerate(parts):
        part.save(folder / f"part-{i}")
    opened = tuple(Part.open(folder / f"part-{i}") for i in range(len(parts)))
    counts = RowCounts(len(items), {}, 0, {})
    for data in (Examples(tuple(parts), counts), Examples(opened, counts)):
        assert [plain(item) for item in data] == [plain(item) for item in items]
        assert plain(data[-1]) == plain(items[-1])
        assert data.responses == 2
        assert data.branches == max(len(item.branches) for item in items)
        assert data.longest == max(item.longest for item in items)
        assert np.diff(data.offsets).tolist() == [
            len(item.scored(r)) for item in items for r in range(2)
        ]
        ends = {int(branch.ids[-1]) for item in items for branch in item.branches}
        assert data.last_tokens == ends
    assert Examples(opened, counts).fingerprint == Examples(tuple(parts), counts).fingerprint


def changed(item, **changes):
    return Examples.of([item._replace(**changes)]).fingerprint


def test_the_fingerprint_tells_everything_apart_but_the_places():
    item = make_example([1, 2], [3, 4], [5], margin=1.0)
    first = item.branches[0]
    scored = first._replace(scored=np.array([False, True]))
    others = [
        changed(item, prompt=np.array([1, 3], np.int32)),
        changed(item, prompt=np.array([1], np.int32)),
        changed(item, branches=(scored, item.branches[1])),
        changed(item, columns={"margin": 2.0}),
        changed(item, columns={"other": 1.0}),
        changed(item, weight=2.0),
    ]
    assert len({changed(item), *others}) == 1 + len(others)
    assert changed(item) == changed(item, where="elsewhere")


def test_a_part_that_another_process_wrote_first_is_kept(tmp_path):
    one, other = Part.of([make_example([1], [2])]), Part.of([make_example([1], [3])])
    one.save(tmp_path / "part")
    other.save(tmp_path / "part")
    assert Part.open(tmp_path / "part").summary == one.summary
    assert [path.name for path in tmp_path.iterdir()] == ["part"]


# Tokenized once, by processes and hosts

SETTINGS = Data(path="rows", skip_empty=True)
ROWS = [{"prompt": f"Hi {i % 3}", "chosen": " yes" * i, "rejected": " no"} for i in range(12)]


def write_rows(path, rows=ROWS):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def path(tmp_path):
    return write_rows(tmp_path / "rows.jsonl")


def stored(folder, path, *, layout=PAIRS, settings=SETTINGS, tokenizer=PLAIN, seed=0, **options):
    store = Store(folder, processes=1)._replace(**options)
    encoder = Encoder(tokenizer, settings, now=datetime.datetime(2026, 1, 2))
    return stored_examples(settings, path, "train", encoder, layout, store, seed=seed)


def in_memory(path, layout=PAIRS):
    return load_examples(SETTINGS, path, "train", Encoder(PLAIN, SETTINGS), layout, seed=0)


@pytest.fixture
def parts_of_5(monkeypatch):
    for module in (tokenize, borrow):
        monkeypatch.setattr(module, "ROWS", 5)


def token_files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("tokens.npy")}


@pytest.mark.parametrize("processes", [1, 2])
def test_a_store_holds_what_memory_holds(tmp_path, path, parts_of_5, processes):
    wanted = in_memory(path)
    found = stored(tmp_path / "store", path, processes=processes)
    assert (len(found.parts), len(found)) == (3, 11)
    assert found.fingerprint == wanted.fingerprint
    assert found.counts == wanted.counts
    assert found.counts.first == {"empty response": f"{path} line 1"}
    assert [item.where for item in found] == [item.where for item in wanted]


@pytest.mark.parametrize("layout", [DEMOS, MISMATCHED])
def test_a_store_holds_every_layout(tmp_path, parts_of_5, layout):
    rows = [{"prompt": f"Hi {i % 3}", "completion": " yes" * (i + 1)} for i in range(12)]
    rows = [row | ({"label": i % 2 == 0} if layout.borrowed else {}) for i, row in enumerate(rows)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    wanted, found = in_memory(path, layout), stored(tmp_path / "store", path, layout=layout)
    assert (found.fingerprint, found.counts) == (wanted.fingerprint, wanted.counts)


def test_a_second_start_tokenizes_nothing(tmp_path, path, parts_of_5, monkeypatch):
    before = stored(tmp_path / "store", path)
    monkeypatch.setattr(Encoder, "encode", None)
    assert stored(tmp_path / "store", path).fingerprint == before.fingerprint


def test_a_killed_store_goes_on_at_the_first_missing_part(tmp_path, path, parts_of_5):
    def stop(where, before, rows):
        if rows == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stored(tmp_path / "store", path, said=stop)
    kept = token_files(tmp_path)
    assert len(kept) == 2
    found = stored(tmp_path / "store", path)
    assert len(found) == 11
    assert token_files(tmp_path).items() > kept.items()


def test_hosts_share_the_parts(tmp_path, path, parts_of_5):
    folder, waited = tmp_path / "store", []

    def as_the_other_host(what):
        waited.append(what)
        if what.startswith("tokenized") and len(waited) == 2:
            assert len(token_files(tmp_path)) == 2
            stored(folder, path, host=1, hosts=2)

    assert len(stored(folder, path, hosts=2, wait=as_the_other_host)) == 11
    assert waited == [f"digests of {path}", f"tokenized {path}"]


def test_an_error_in_a_process_names_the_row(tmp_path, parts_of_5):
    rows = [*ROWS[1:], {"prompt": 3, "chosen": "a", "rejected": "b"}]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match="line 12: 'prompt' is neither text nor messages"):
        stored(tmp_path / "store", path, processes=2)


def test_a_damaged_part_is_refused_by_its_folder(tmp_path, path):
    stored(tmp_path / "store", path)
    (file,) = token_files(tmp_path)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(RunError, match=r"damaged.*delete this folder"):
        stored(tmp_path / "store", path)


def test_a_flipped_byte_anywhere_is_refused_or_changes_nothing(tmp_path, path, parts_of_5):
    folder = tmp_path / "store"
    before = [plain(item) for item in stored(folder, path)]
    refused = 0
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        good = file.read_bytes()
        for at in range(0, len(good), -(-len(good) // 9)):
            file.write_bytes(good[:at] + bytes([good[at] ^ 5]) + good[at + 1 :])
            try:
                found = [plain(item) for item in stored(folder, path)]
            except RunError:
                refused += 1
            else:
                assert found == before, (file.name, at)
        file.write_bytes(good)
    assert refused > 100


def test_a_missing_part_is_refused(tmp_path, path, parts_of_5):
    stored(tmp_path / "store", path)
    shutil.rmtree(next((tmp_path / "store").glob("*/part-000001")))
    with pytest.raises(RunError, match=r"a part of the tokens of .* is missing; delete the folder"):
        stored(tmp_path / "store", path)


def test_other_rows_settings_and_templates_have_other_tokens(tmp_path, path):
    folder = tmp_path / "store"
    before = stored(folder, path)
    assert stored(folder, path, settings=replace(SETTINGS, max_length=12)).longest < before.longest
    renamed = replace(SETTINGS, columns={"chosen": "rejected", "rejected": "chosen"})
    assert stored(folder, path, settings=renamed).fingerprint != before.fingerprint
    assert len(stored(folder, path, settings=replace(SETTINGS, limit=3))) == 2
    write_rows(Path(path), ROWS[:5])
    assert len(stored(folder, path)) == 4


def test_only_a_template_with_a_clock_depends_on_the_date():
    days = [datetime.datetime(2026, 1, day) for day in (1, 2)]

    def keys(template):
        return {Encoder(PLAIN, SETTINGS, template=template, now=day).fingerprint for day in days}

    plain = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert len(keys(plain)) == 1
    assert len(keys(plain + "{{ strftime_now('%d') }}")) == 2


def test_a_file_with_other_rows_and_the_same_size_and_time_has_another_key(tmp_path):
    file = tmp_path / "data.jsonl"

    def key(text):
        file.write_text(json.dumps({"text": text}))
        os.utime(file, (1, 1))
        encoder, settings = Encoder(PLAIN), Data(path=str(file))
        return data_key(settings, str(file), "train", encoder, DEMOS, (), tmp_path / "store")

    assert len({key("yes"), key("you")}) == 2
