from __future__ import annotations

import chex
import numpy as np
import pytest
from lib.packing import make_example

from jaxalign.data.loader import Loader
from jaxalign.data.mixture import Mixture, draws, epoch_order, mix, order, whole
from jaxalign.data.store import Examples
from jaxalign.errors import UserError
from jaxalign.settings import Source

MIXED = Mixture(sizes=(7, 5, 3), draws=(3, 5, 8))
"""A part of a source, a whole source, and a source that is repeated."""


def source(name="a", **changes):
    return Source(path=name, **changes)


def data(n, first=1, responses=2, **columns):
    items = [
        make_example([i] * 3, *np.full((responses, 2), i))._replace(columns=columns)
        for i in range(first, first + n)
    ]
    return Examples.of(items)


def of_source(examples, i, mixture=MIXED):
    """The examples of source i, in order, as places in that source."""
    first = sum(mixture.sizes[:i])
    return examples[(examples >= first) & (examples < first + mixture.sizes[i])] - first


def epochs(count, seed=0, mixture=MIXED):
    return [epoch_order(mixture, seed, e) for e in range(count)]


@pytest.mark.parametrize(
    ("sources", "sizes", "expected"),
    [
        ([source(), source()], (4, 6), (4, 6)),
        ([source(rows=2), source(), source(rows=9)], (4, 6, 3), (2, 6, 9)),
        ([source(share=0.7), source(share=0.3)], (70, 100), (70, 30)),
        ([source(share=0.5), source(share=0.5)], (100, 40), (40, 40)),
        ([source(share=0.25), source()], (100, 30), (10, 30)),
        ([source(share=0.25), source(rows=60), source()], (100, 80, 30), (30, 60, 30)),
        ([source(share=0.9), source()], (10, 10), (90, 10)),
        ([source(share=1e-6), source()], (10, 10), (1, 10)),
        ([source(share=1.0)], (10,), (10,)),
    ],
)
def test_an_epoch_has_what_the_sources_ask_for(sources, sizes, expected):
    assert draws(sources, sizes) == expected


@pytest.mark.parametrize("seed", range(20))
def test_shares_alone_repeat_nothing_and_exhaust_one_source(seed):
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(3))
    sizes = tuple(rng.integers(1, 500, 3).tolist())
    counts = draws([source(share=share) for share in shares.tolist()], sizes)
    assert all(k <= n for k, n in zip(counts, sizes, strict=True))
    assert any(k == n for k, n in zip(counts, sizes, strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_shares_next_to_a_whole_source_are_those_of_the_epoch(seed):
    shares = 0.9 * np.random.default_rng(seed).dirichlet(np.ones(2))
    counts = draws([*(source(share=s) for s in shares.tolist()), source()], (500, 500, 200))
    np.testing.assert_allclose(counts[:2], shares * sum(counts), atol=1)


def test_one_data_set_has_the_order_of_its_epoch():
    for epoch in range(3):
        found = epoch_order(whole(20), 5, epoch)
        np.testing.assert_array_equal(found, order(5, epoch, 20))


def test_whole_sources_have_the_order_of_their_examples_joined():
    np.testing.assert_array_equal(epoch_order(Mixture((7, 5), (7, 5)), 3, 2), order(3, 2, 12))


def test_every_epoch_has_the_number_of_each_source():
    for examples in epochs(5):
        assert tuple(len(of_source(examples, i)) for i in range(3)) == MIXED.draws


def test_a_source_is_seen_in_whole_passes_over_the_epochs():
    seen = np.concatenate([of_source(examples, 0) for examples in epochs(7)])
    assert np.bincount(seen).tolist() == [3] * 7
    first = np.concatenate([of_source(examples, 0) for examples in epochs(2)])
    assert np.bincount(first, minlength=7).max() == 1


def test_the_examples_of_a_source_that_is_too_small_are_repeated_about_equally():
    for examples in epochs(3):
        assert np.ptp(np.bincount(of_source(examples, 2), minlength=3)) <= 2  # passes go on


def test_the_passes_over_a_source_have_different_orders():
    mixture = Mixture((50, 60), (20, 60))
    orders = [set(of_source(e, 0, mixture).tolist()) for e in epochs(6, mixture=mixture)]
    assert len(set(map(frozenset, orders))) == 6


def test_sources_of_one_size_are_walked_in_different_orders():
    mixture = Mixture((50, 50), (25, 25))
    (examples,) = epochs(1, mixture=mixture)
    assert set(of_source(examples, 0, mixture)) != set(of_source(examples, 1, mixture))


def test_the_sources_are_mixed_within_the_epoch():
    mixture = Mixture((200, 200), (100, 200))
    (examples,) = epochs(1, mixture=mixture)
    assert 25 < (examples[:150] < 200).sum() < 75


def test_the_order_depends_on_the_seed_and_the_epoch_alone():
    wanted = epochs(3, seed=4)
    epoch_order.cache_clear()
    for epoch in (2, 0, 1):
        np.testing.assert_array_equal(epoch_order(MIXED, 4, epoch), wanted[epoch])
    assert epochs(1, seed=5)[0].tolist() != wanted[0].tolist()


def test_the_order_of_a_mixture_is_the_same_on_every_machine_and_version():
    assert epoch_order(MIXED, 0, 1).tolist() == [
        13,
        12,
        5,
        11,
        9,
        12,
        13,
        8,
        13,
        10,
        14,
        14,
        13,
        7,
        2,
        0,
    ]


def loader(examples, mixture, **changes):
    options = dict(batch_size=4, microbatches=1, shards=1, row_length=64, shapes=1, seed=7)
    return Loader(examples, mixture=mixture, **(options | changes))


def test_batches_join_the_epochs_of_a_mixture():
    mixed, mixture = mix([source(rows=3), source("b")], [data(7), data(5, first=8)])
    used = loader(mixed, mixture)
    found = np.concatenate([used.indices(step) for step in range(4)])
    np.testing.assert_array_equal(found, np.concatenate(epochs(2, 7, mixture)))
    assert used.steps(epochs=2) == 4


def test_a_batch_of_a_mixture_depends_on_its_step_alone():
    mixed, mixture = mix([source(rows=3), source("b")], [data(7), data(5, first=8)])
    used = loader(mixed, mixture)
    wanted = list(used.batches(0, 9))
    chex.assert_trees_all_equal(list(loader(mixed, mixture).batches(6, 9)), wanted[6:])


def test_the_examples_of_the_sources_are_joined_in_their_order():
    mixed, mixture = mix([source(), source("b")], [data(3), data(2, first=8)])
    assert [int(item.prompt[0]) for item in mixed] == [1, 2, 3, 8, 9]
    assert (mixture.sizes, mixed.counts.kept) == ((3, 2), 5)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            data(2, responses=3),
            r"data.mixture: a has responses: 2, columns: none, but b has responses: 3, columns: ",
        ),
        (data(2, label=1.0), r"a has responses: 2, columns: none, but b has .*, columns: label; t"),
    ],
)
def test_sources_that_cannot_be_in_one_batch_are_named(other, message):
    with pytest.raises(UserError, match=message):
        mix([source(), source("b")], [data(3), other])
