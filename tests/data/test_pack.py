from __future__ import annotations

import chex
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lib.packing import (
    contexts,
    expected_contexts,
    hh_like,
    in_spans,
    make_example,
    unshared_batch,
)

from jaxalign.data.pack import CachedStats, cell_size, head_chunks, pack, token_counts
from jaxalign.data.rows import Shape
from jaxalign.data.store import Examples
from jaxalign.errors import UserError

TOKENS = st.integers(1, 500)


@st.composite
def calls(draw):
    """Arguments of `pack`: any lengths, prompts, contexts, padding examples and division."""
    responses = draw(st.sampled_from([1, 2, 3]))
    microbatches, shards, chunks, b = (draw(st.integers(1, 3)) for _ in range(4))
    items = []
    for _ in range(microbatches * shards * chunks * b):
        prompt = draw(st.lists(TOKENS, max_size=12))
        shortest = 1 if prompt else 2
        answers = [draw(st.lists(TOKENS, min_size=shortest, max_size=9)) for _ in range(responses)]
        context = tuple(draw(st.integers(0, len(a) - shortest)) for a in answers)
        context = draw(st.sampled_from([(), context]))
        items.append(make_example(prompt, *answers, context=context, label=1.0))
    if draw(st.booleans()):
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        items = [in_spans(item, rng) for item in items]
    n_padding = draw(st.integers(0, len(items) - 1))
    items[len(items) - n_padding :] = [None] * n_padding
    indices = draw(st.permutations(range(100, 100 + len(items))))
    options = {
        "responses": responses,
        "microbatches": microbatches,
        "shards": shards,
        "chunks": chunks,
        "max_scored": draw(st.sampled_from([9, 16])),
        "shapes": draw(
            st.sampled_from([(), (Shape(2, 32, chunks, 64), Shape(9, 48, chunks, 320))])
        ),
    }
    return items, indices, draw(st.sampled_from([8, 16, 32])), options


@given(calls())
@settings(max_examples=60, deadline=None)
def test_every_scored_token_sees_its_prompt_and_its_own_branch_and_nothing_else(call):
    items, indices, row_length, options = call
    batch = pack(items, indices, row_length=row_length, **options)
    assert contexts(batch) == expected_contexts(items, indices)


@given(calls())
@settings(max_examples=30, deadline=None)
def test_the_reference_packer_shows_the_same_contexts(call):
    items, indices, _, options = call
    del options["shapes"]
    batch = unshared_batch(items, indices, **options)
    assert contexts(batch) == expected_contexts(items, indices)


@given(calls())
@settings(max_examples=30, deadline=None)
def test_every_example_is_in_exactly_one_cell(call):
    items, indices, row_length, options = call
    batch = pack(items, indices, row_length=row_length, **options)
    real = [index for item, index in zip(items, indices, strict=True) if item]
    assert sorted(batch.example[batch.weight == 1].tolist()) == sorted(real)
    assert (batch.example[batch.weight == 0] == -1).all()


@given(calls())
@settings(max_examples=30, deadline=None)
def test_every_token_of_every_example_is_in_one_row(call):
    items, indices, row_length, options = call
    batch = pack(items, indices, row_length=row_length, **options)
    rows = batch.ids.reshape(-1, batch.ids.shape[-1])
    segments = batch.segment.reshape(rows.shape)
    found = [
        ids[segment == s].tolist()
        for ids, segment in zip(rows, segments, strict=True)
        for s in range(1, segment.max() + 1)
    ]
    wanted = [np.concatenate([x.prompt, *(b.ids for b in x.branches)]).tolist() for x in items if x]
    assert sorted(found) == sorted(wanted)


@given(calls())
@settings(max_examples=20, deadline=None)
def test_packing_is_deterministic(call):
    items, indices, row_length, options = call
    chex.assert_trees_all_equal(
        pack(items, indices, row_length=row_length, **options),
        pack(items, indices, row_length=row_length, **options),
    )


@given(calls(), st.data())
@settings(max_examples=30, deadline=None)
def test_only_held_shards_are_filled_and_the_others_outlined(call, data):
    items, indices, row_length, options = call
    shards = range(options["shards"])
    held = data.draw(st.sets(st.sampled_from(shards)))
    whole = pack(items, indices, row_length=row_length, **options)
    batch = pack(items, indices, row_length=row_length, held=held, **options)
    for s in shards:
        ours, wanted = (jax.tree.map(lambda x, s=s: x[:, s], x) for x in (batch, whole))
        if s in held:
            chex.assert_trees_all_equal(ours, wanted)
        else:
            assert not ours.ids.any()
            assert not ours.target.any()
    for name in ("segment", "mask", "weight", "example"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(whole, name))
    assert token_counts(batch) == token_counts(whole)


@given(calls())
@settings(max_examples=30, deadline=None)
def test_padding_is_zero_everywhere_and_its_slots_are_out_of_range(call):
    items, indices, row_length, options = call
    batch = pack(items, indices, row_length=row_length, **options)
    empty = batch.segment == 0
    for array in (batch.ids, batch.positions, batch.branch):
        assert (array[empty] == 0).all()
    chunks = batch.slot.shape[2]
    unused = batch.slot == np.prod(batch.mask.shape[2:]) // chunks
    assert (batch.source[unused] == 0).all()
    assert (batch.columns["label"] == batch.weight).all()


def one_batch(items, **changes):
    options = dict(
        responses=next(x for x in items if x).responses,
        microbatches=1,
        shards=1,
        chunks=1,
        row_length=64,
        max_scored=16,
    )
    return pack(items, np.arange(len(items)), **(options | changes))


def test_a_batch_has_the_dtypes_and_shapes_of_its_contract():
    items = [make_example([1, 2], [3, 4], [5], label=1.0)] * 6
    batch = one_batch(items, microbatches=3, shards=2)
    assert batch.ids.shape == batch.segment.shape == (3, 2, 1, 64)
    assert batch.source.shape == batch.target.shape == batch.slot.shape == (3, 2, 1, 64)
    assert batch.mask.shape == (3, 2, 1, 2, 16)
    assert batch.columns["label"].shape == batch.weight.shape == (3, 2, 1)
    ints = (*batch[:7], batch.example)
    assert {x.dtype for x in ints} == {np.dtype("int32")}
    assert {x.dtype for x in (batch.weight, batch.columns["label"])} == {np.dtype("float32")}
    assert batch.mask.dtype == bool


def test_a_small_batch_is_packed_as_by_hand():
    batch = one_batch([make_example([1, 2], [3, 4], [5])], row_length=8)
    assert batch.ids[0, 0].tolist() == [[1, 2, 3, 4, 5, 0, 0, 0]]
    assert batch.positions[0, 0].tolist() == [[0, 1, 2, 3, 2, 0, 0, 0]]
    assert batch.segment[0, 0].tolist() == [[1, 1, 1, 1, 1, 0, 0, 0]]
    assert batch.branch[0, 0].tolist() == [[0, 0, 1, 1, 2, 0, 0, 0]]
    assert batch.source[0, 0, 0, :4].tolist() == [1, 2, 1, 0]
    assert batch.target[0, 0, 0, :4].tolist() == [3, 4, 5, 0]
    assert batch.slot[0, 0, 0, :4].tolist() == [0, 1, 16, 32]


def test_without_a_prompt_the_first_token_has_no_predictor():
    batch = one_batch([make_example([], [7, 8, 9])])
    assert batch.target[0, 0, 0, :3].tolist() == [8, 9, 0]
    assert batch.mask.sum() == 2


def test_context_of_a_response_is_seen_and_not_scored():
    batch = one_batch([make_example([1], [2, 3, 4], [5, 6], context=(2, 0))])
    assert batch.ids[0, 0, 0, :6].tolist() == [1, 2, 3, 4, 5, 6]
    assert batch.source[0, 0, 0, :4].tolist() == [2, 0, 4, 0]
    assert batch.target[0, 0, 0, :4].tolist() == [4, 5, 6, 0]
    assert batch.mask[0, 0, 0].sum(-1).tolist() == [1, 2]


def test_context_predicts_the_first_token_where_there_is_no_prompt():
    batch = one_batch([make_example([], [7, 8, 9], context=(1,))])
    assert batch.target[0, 0, 0, :3].tolist() == [8, 9, 0]


def test_the_fingerprint_tells_contexts_apart():
    examples = [
        Examples.of([make_example([1], [2, 3], context=context)]).fingerprint
        for context in [(), (0,), (1,)]
    ]
    assert examples[0] == examples[1] != examples[2]


def test_row_length_doubles_until_the_longest_example_fits():
    items = [make_example(range(1, 41), range(1, 21), range(1, 11))]
    assert one_batch(items, row_length=16, max_scored=32).ids.shape[-1] == 128


def test_an_example_as_long_as_a_row_fits_in_one_row():
    items = [make_example([1] * 10, [2] * 3, [3] * 3)] * 2
    assert one_batch(items, row_length=16).ids.shape[2:] == (2, 16)


def test_a_batch_that_cannot_be_divided_names_sizes_that_can():
    with pytest.raises(UserError, match=r"batch_size 10 cannot be .* set it to 8 or 12"):
        cell_size(10, 2, 2)


def test_a_batch_smaller_than_its_cells_names_the_least_size():
    with pytest.raises(UserError, match=r"batch_size 3 cannot be .* set it to 4, or"):
        cell_size(3, 2, 2)


def test_a_response_longer_than_max_scored_is_refused():
    with pytest.raises(ValueError, match="a response has 5 scored tokens, over max_scored 4"):
        one_batch([make_example([1], [2] * 5)], max_scored=4)


def test_rows_are_as_long_as_costs_least():
    # Two examples of 90 tokens leave as much empty in rows of 128 as in one of 256, which has the
    # dearer attention; four of them fill one of 384; twelve of 40 tokens fill rows of 128.
    def shape(n, length):
        answer = [2] * (length - 1)
        return one_batch([make_example([1], answer)] * n, row_length=512, max_scored=96)

    shapes = [shape(n, length).ids.shape[2:] for n, length in ((2, 90), (4, 90), (12, 40))]
    assert shapes == [(2, 128), (1, 384), (4, 128)]


def test_a_batch_has_the_first_shape_that_holds_it():
    items = [make_example([1] * 10, [2] * 30)] * 3
    small, narrow, fitting, large = (
        *(Shape(1, 64, 1, 128), Shape(3, 64, 1, 64)),
        *(Shape(3, 64, 1, 128), Shape(4, 64, 1, 128)),
    )
    batch = one_batch(items, max_scored=32, shapes=[small, narrow, fitting, large])
    assert Shape(*batch.ids.shape[2:], *batch.source.shape[2:]) == fitting


def test_a_batch_that_no_shape_holds_has_its_own():
    items = [make_example([1] * 10, [2] * 30)] * 3
    alone = one_batch(items, max_scored=32)
    chex.assert_trees_all_equal(
        one_batch(items, max_scored=32, shapes=[Shape(2, 64, 1, 128)]), alone
    )


def test_cells_are_balanced_in_tokens_and_in_scored_tokens():
    rng = np.random.default_rng(0)
    items = [
        make_example([1] * p, [2] * a) for p, a in zip(*rng.integers(1, 200, (2, 64)), strict=True)
    ]
    batch = one_batch(items, microbatches=4, shards=2, row_length=512, max_scored=200)
    tokens = (batch.segment > 0).sum((2, 3))
    scored = batch.mask.sum((2, 3, 4))
    assert tokens.max() / tokens.mean() < 1.06
    assert scored.max() / scored.mean() < 1.06


def test_hh_like_lengths_fill_over_80_percent_of_the_slots():
    real = slots = 0
    items = hh_like(640)
    for i in range(0, 640, 32):
        counts = token_counts(one_batch(items[i : i + 32], row_length=512, max_scored=256))
        real, slots = real + counts.real, slots + counts.slots
    assert real / slots > 0.8


def test_counts_tell_tokens_slots_scored_tokens_and_tokens_without_sharing():
    batch = one_batch([make_example([1, 2, 3], [4, 5], [6]), make_example([7], [8], [9])])
    assert token_counts(batch) == (9, 64, 5, 13)


def test_one_response_shares_its_prompt_with_nothing():
    counts = token_counts(one_batch([make_example([1, 2, 3], [4, 5]), None]))
    assert counts.real == counts.unshared == 5


def test_a_prompt_is_encoded_once_however_many_responses_share_it():
    items = [make_example([1, 2, 3], [4, 5], [6], [7]), make_example([7], [8], [9], [10])]
    assert token_counts(one_batch(items)).real == (3 + 4) + (1 + 3)


@pytest.mark.parametrize("model", ["ref", "start"])
def test_cached_statistics_go_where_their_tokens_go(model):
    items = [make_example([1, 2], [3, 4], [5]), make_example([], [6, 7], [8, 9, 10])]
    data = Examples.of(items)
    flat = np.arange(1, data.offsets[-1] + 1, dtype=np.float32)
    batch = one_batch(items, cached=CachedStats(**{model: {"logp": flat}}), offsets=data.offsets)
    values = getattr(batch, model)["logp"]
    assert (values != 0).tolist() == batch.mask.tolist()
    order = np.argsort(batch.example[0, 0])
    assert values[0, 0][order][batch.mask[0, 0][order]].tolist() == flat.tolist()


def test_chunks_are_the_fewest_whose_logits_fit():
    # 100 scored tokens and 2^28 / (4 * 32768) = 2048 rows of logits: 20 examples at a time.
    assert [head_chunks(b, 100.0, 32768) for b in (8, 20, 21, 40, 46)] == [1, 1, 3, 2, 23]
    assert head_chunks(4, 1e6, 32768) == 4
