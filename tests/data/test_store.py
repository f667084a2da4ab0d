"""Examples in memory and on disk."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lib.packing import in_spans, make_example
from lib.rows import PLAIN

from jaxalign.core.layouts import PAIRS
from jaxalign.data import tokenize
from jaxalign.data.encode import Encoder
from jaxalign.data.examples import RowCounts
from jaxalign.data.store import Examples, Part
from jaxalign.errors import UserError
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


def test_a_slice_of_a_part_on_disk_is_a_copy(tmp_path):
    Part.of([make_example([1], [2, 3])]).save(tmp_path / "part")
    found = Part.open(tmp_path / "part").tokens[0:2]
    assert not isinstance(found, np.memmap)
    assert found.tolist() == [1, 2]


# Tokenized into a store

ROWS = [(f"row {i}", {"prompt": "Hi", "chosen": " yes" * i, "rejected": " no"}) for i in range(12)]


def stored(folder, rows=ROWS, **options):
    settings = Data(path="rows", skip_empty=True)
    store = tokenize.Store(folder, **options)
    encoder = Encoder(PLAIN, settings)
    tokenize.store_examples(settings, rows, encoder, PAIRS, store)
    return tokenize.open_stored("rows", store)


@pytest.fixture
def parts_of_5(monkeypatch):
    monkeypatch.setattr(tokenize, "ROWS", 5)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_store_holds_what_memory_holds(tmp_path, parts_of_5, processes):
    settings = Data(path="rows", skip_empty=True)
    encoder = Encoder(PLAIN, settings)
    wanted = tokenize.make_examples(settings, ROWS, "rows", encoder, PAIRS, seed=0)
    found = stored(tmp_path, processes=processes)
    assert (len(found.parts), len(found)) == (3, 11)
    assert found.fingerprint == wanted.fingerprint
    assert found.counts == wanted.counts
    assert found.counts.first == {"empty response": "row 0"}


def test_a_killed_store_goes_on_at_the_first_missing_part(tmp_path, parts_of_5):
    def killed():
        yield from ROWS[:10]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stored(tmp_path, killed())
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/tokens.npy")}
    assert len(kept) == 2
    found = stored(tmp_path)
    assert len(found) == 11
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_hosts_share_the_parts(tmp_path, parts_of_5):
    assert stored(tmp_path, host=0, hosts=2) is None
    assert len(list(tmp_path.glob("part-*"))) == 2
    assert len(stored(tmp_path, host=1, hosts=2)) == 11


def test_an_error_in_a_process_names_the_row(tmp_path, parts_of_5):
    rows = [*ROWS[1:], ("row 12", {"prompt": 3, "chosen": "a", "rejected": "b"})]
    with pytest.raises(UserError, match="row 12: 'prompt' is neither text nor messages"):
        stored(tmp_path, rows, processes=2)
