from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter

import chex
import numpy as np
import pytest
from lib.packing import contexts, expected_contexts, hh_like, make_example

from jaxalign.data.loader import AHEAD, Loader, Sizes
from jaxalign.data.mixture import order
from jaxalign.data.pack import CachedStats
from jaxalign.data.rows import Shape
from jaxalign.data.store import Examples
from jaxalign.errors import UserError


def data(n=10):
    rng = np.random.default_rng(n)
    return Examples.of(
        [make_example([i] * 3, *rng.integers(1, 9, (2, 1 + i % 5))) for i in range(1, n + 1)]
    )


def loader(examples=None, **changes):
    options = dict(batch_size=4, microbatches=2, shards=1, row_length=32, shapes=2, seed=7)
    return Loader(examples or data(), **(options | changes))


def seen(batches):
    """How often each example was handed out."""
    return Counter(i for b in batches for i in b.example[b.weight == 1].tolist())


def test_importing_the_data_package_does_not_import_jax():
    code = (
        "import sys, jaxalign.data.loader, jaxalign.data.tokenize\n"
        "assert not {'jax', 'transformers', 'datasets', 'torch'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_order_of_an_epoch_is_a_permutation():
    assert sorted(order(0, 3, 50)) == list(range(50))


def test_the_order_is_the_same_on_every_machine_and_version():
    assert order(0, 0, 8).tolist() == [3, 6, 4, 0, 7, 5, 2, 1]


@pytest.mark.parametrize("seed, epoch", [(1, 0), (0, 1)])
def test_the_order_changes_with_the_seed_and_the_epoch(seed, epoch):
    assert order(seed, epoch, 50).tolist() != order(0, 0, 50).tolist()


def test_a_batch_depends_on_its_step_alone():
    used = loader()
    for step in (5, 0, 2):
        used.batch(step)
    chex.assert_trees_all_equal(used.batch(3), loader().batch(3))


def test_every_example_is_seen_once_an_epoch_and_none_is_left_over():
    assert seen(loader().batches(0, 5)) == dict.fromkeys(range(10), 2)


def test_a_batch_across_two_epochs_takes_the_end_of_one_and_the_start_of_the_next():
    wanted = [*order(7, 0, 10)[8:], *order(7, 1, 10)[:2]]
    assert loader().indices(2).tolist() == wanted


def test_a_batch_larger_than_the_data_repeats_examples():
    assert seen([loader(data(3), batch_size=8).batch(0)]).total() == 8


def test_no_example_of_a_training_batch_is_padding():
    assert all((batch.weight == 1).all() for batch in loader().batches(0, 7))


@pytest.mark.parametrize("epochs, steps", [(1, 3), (2, 5), (0.1, 1), (0.4, 1), (1.2, 3)])
def test_steps_cover_the_epochs(epochs, steps):
    assert loader().steps(epochs) == steps


def test_rounding_adds_no_step():
    assert loader(data(30), batch_size=6).steps(0.6) == 3


def test_batches_ahead_are_those_of_their_steps():
    one = loader()
    for step, batch in enumerate(one.batches(2, 9), 2):
        chex.assert_trees_all_equal(batch, one.batch(step))


def test_batches_of_an_empty_range_are_none():
    assert list(loader().batches(3, 3)) == []


def test_no_more_than_the_stated_number_is_packed_ahead(monkeypatch):
    one, made = loader(), []
    pack_step = one.batch
    monkeypatch.setattr(one, "batch", lambda step: made.append(step) or pack_step(step))
    stream = one.batches(0, 9)
    next(stream)
    stream.close()
    assert len(made) <= 1 + AHEAD


def test_an_exception_while_packing_reaches_the_consumer(monkeypatch):
    one = loader()

    def broken(step):
        raise RuntimeError("torn")

    monkeypatch.setattr(one, "batch", broken)
    with pytest.raises(RuntimeError, match="torn"):
        next(one.batches(0, 3))


def test_the_thread_ends_when_the_iterator_is_closed():
    stream = loader().batches(0, 100)
    next(stream)
    stream.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("pack")]


def test_sequential_batches_hold_every_example_once_in_order():
    batches = list(loader().sequential())
    held = [sorted(b.example[b.weight == 1].tolist()) for b in batches]
    assert held == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_sequential_batches_of_a_range_hold_its_examples_alone():
    assert seen(loader().sequential(4, 9)) == dict.fromkeys(range(4, 9), 1)


def test_the_last_sequential_batch_is_padded_with_examples_of_no_weight():
    *_, last = loader().sequential()
    assert last.weight.sum() == 2
    assert last.mask[last.weight == 0].sum() == 0


def test_all_batches_have_the_same_number_of_scored_positions_a_response():
    assert {b.mask.shape for b in loader().batches(0, 9)} == {(2, 1, 2, 2, 16)}


def test_a_batch_shows_the_contexts_of_its_examples():
    one = loader()
    indices = one.indices(1)
    items = [one.examples[i] for i in indices]
    assert contexts(one.batch(1)) == expected_contexts(items, indices.tolist())


def test_reference_statistics_follow_their_examples_into_any_batch():
    examples = data()
    flat = np.arange(examples.offsets[-1], dtype=np.float32)
    one = loader(examples, cached=CachedStats({"logp": flat}))
    for batch in one.batches(0, 5):
        for cell in np.ndindex(*batch.example.shape):
            for r in range(2):
                at = examples.offsets[batch.example[cell] * 2 + r :][:2]
                values = batch.ref["logp"][cell][r][batch.mask[cell][r]]
                assert values.tolist() == list(range(*at))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_batches_have_no_more_shapes_than_stated(count):
    examples = Examples.of(hh_like(200))
    for read in (lambda one: one.batches(0, 25), lambda one: one.sequential()):
        one = loader(examples, batch_size=8, row_length=1024, shapes=count)
        assert len(list(read(one))) == 25
        assert len(one.shapes_seen) == count


def test_more_shapes_are_fuller():
    def slots(count):
        examples = Examples.of(hh_like(200))
        one = loader(examples, batch_size=8, row_length=1024, shapes=count)
        return sum(batch.ids.size for batch in one.batches(0, 25))

    assert slots(4) < 0.8 * slots(1)


def test_batches_larger_than_those_looked_at_have_shapes_of_their_own(monkeypatch):
    monkeypatch.setattr("jaxalign.data.loader.LOOKED_AT", (3, 10**6))
    one = loader(Examples.of(hh_like(200)), batch_size=8, shapes=2, row_length=1024)
    assert seen(one.batches(0, 25)) == dict.fromkeys(range(200), 1)
    assert one.shapes_seen > set(one.shapes)


def test_runs_with_other_seeds_have_the_same_shapes():
    examples = Examples.of(hh_like(200))
    runs = [loader(examples, batch_size=8, row_length=1024, shapes=3, seed=s) for s in range(4)]
    assert all(one.shapes == runs[0].shapes for one in runs)
    assert not np.array_equal(runs[0].indices(0), runs[1].indices(0))
    for one in runs:
        list(one.batches(0, 50))
    assert set.union(*(one.shapes_seen for one in runs)) == set(runs[0].shapes)


def test_batches_have_the_sizes_of_earlier_data_that_are_a_little_larger():
    examples = Examples.of(hh_like(200))
    own = loader(examples, batch_size=100, row_length=1024, shapes=2).sizes
    larger = [[s._replace(rows=s.rows + 1) for s in shapes] for shapes in own[:2]]
    before = Sizes(*larger, own.max_scored + 16)
    one = loader(examples, batch_size=100, row_length=1024, shapes=2, before=before)
    assert one.sizes == before
    batch = one.batch(0)
    assert Shape(*batch.ids.shape[2:], *batch.source.shape[2:]) in larger[0]
    assert batch.mask.shape[-1] == own.max_scored + 16


def test_batches_have_no_sizes_of_earlier_data_that_are_much_larger_or_too_small():
    examples = Examples.of(hh_like(200))
    own = loader(examples, batch_size=8, row_length=1024, shapes=2).sizes
    larger = [[s._replace(rows=s.rows * 20) for s in shapes] for shapes in own[:2]]
    for max_scored in (own.max_scored - 16, own.max_scored * 2 + 16):
        before = Sizes(*larger, max_scored)
        one = loader(examples, batch_size=8, row_length=1024, shapes=2, before=before)
        assert one.sizes == own


def test_shapes_seen_are_those_of_the_batches():
    one = loader()
    shapes = {(*b.ids.shape[2:], *b.source.shape[2:]) for b in one.batches(0, 9)}
    assert one.shapes_seen == shapes


def test_a_batch_size_that_cannot_be_divided_is_refused_at_once():
    with pytest.raises(UserError, match=r"batch_size 5 cannot be divided .* set it to 4 or 6"):
        loader(batch_size=5)


@pytest.mark.parametrize("model", ["ref", "start"])
def test_cached_statistics_of_another_length_are_refused(model):
    said = rf"{model}\['logp'\] has shape \(3,\); the data set has 60"
    with pytest.raises(ValueError, match=said):
        loader(cached=CachedStats(**{model: {"logp": np.zeros(3, np.float32)}}))
