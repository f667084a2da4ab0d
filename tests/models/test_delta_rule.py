"""The chunked delta rule against plain recurrences, one sequence at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.models.attention.mask import RowMask
from jaxalign.models.layers.conv import before
from jaxalign.models.layers.delta_rule import delta_rule, unit_lower_inverse

H, DK, DV = 2, 5, 7
LAYOUTS = {
    "one sequence": [(23,)],
    "several in a chunk": [(3,), (1,), (2,), (11,), (6,)],
    "two branches": [(9, 6, 8)],
    "branches within a chunk": [(2, 1, 1, 1), (1, 2), (3, 4, 1)],
    "a prompt over chunks": [(4,), (13, 5, 2, 3), (2, 7)],
    "no prompt": [(0, 5, 4), (0, 3)],
}
"""(tokens of the prompt, of each branch) of each segment."""


def rows_of(layout, padding=3, branches=4):
    """One row, and the places of the tokens of each of its sequences."""
    segment, branch, positions, sequences = [], [], [], []
    for s, (prompt, *answers) in enumerate(layout, 1):
        own = list(range(len(segment), len(segment) + prompt))
        sequences.append(own)
        for b, count in enumerate([prompt, *answers]):
            if b:
                sequences.append(own + list(range(len(segment), len(segment) + count)))
            segment += [s] * count
            branch += [b] * count
            positions += range(prompt if b else 0, (prompt if b else 0) + count)
    columns = [np.array([x + [0] * padding], np.int32) for x in (segment, branch, positions)]
    return RowMask(*columns, branches=branches), sequences


def inputs(length, seed=0):
    """q, k, v, beta and g of one row, float64."""
    rng = np.random.default_rng(seed)
    q, k = rng.normal(size=(2, 1, length, H, DK))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    v = rng.normal(size=(1, length, H, DV))
    beta = rng.uniform(0, 1, (1, length, H))
    return q, k, v, beta, -rng.exponential(size=(1, length, H))


def chunked(given, rows, state=None, chunk=64):
    """The rule, compiled."""
    return jax.jit(functools.partial(delta_rule, chunk=chunk))(*given, rows, state)


def recurrence(q, k, v, beta, g):
    """The outputs of one sequence, [L, H, ...] each: the equations token by token."""
    state, out = np.zeros((H, DK, DV)), []
    for t in range(len(q)):
        state = np.exp(g[t])[:, None, None] * state
        wrong = v[t] - np.einsum("hdv,hd->hv", state, k[t])
        state = state + np.einsum("hd,hv->hdv", k[t], beta[t][:, None] * wrong)
        out.append(np.einsum("hdv,hd->hv", state, q[t]))
    return np.stack(out), state


def by_recurrence(given, sequences):
    """The outputs [L, H, DV] of a row, 0 at padding."""
    out = [np.zeros((H, DV))] * given[0].shape[1]
    for places in filter(None, sequences):
        values, _ = recurrence(*(x[0, places] for x in given))
        for place, value in zip(places, values, strict=True):
            out[place] = value
    return np.stack(out)


@pytest.mark.parametrize("chunk", [1, 8, 64])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_sequence_of_a_row_is_a_recurrence_of_its_own(layout, chunk):
    rows, sequences = rows_of(layout)
    given = inputs(rows.segment.shape[1])
    out, _ = chunked(given, rows, chunk=chunk)
    real = rows.segment[0] > 0
    wanted = by_recurrence(given, sequences)
    np.testing.assert_allclose(out[0][real], wanted[real], rtol=1e-5, atol=1e-5)
    assert np.isfinite(out).all()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_gradients_are_those_of_the_recurrences(layout):
    """The slope along a random direction of each input, by central differences in float64."""
    rows, sequences = rows_of(layout)
    given = inputs(rows.segment.shape[1])
    rng = np.random.default_rng(1)
    factors = rng.normal(size=(*rows.segment.shape, H, DV)) * (rows.segment > 0)[:, :, None, None]

    def total(given):
        return (by_recurrence(given, sequences) * factors[0]).sum()

    def ours(given):
        return jnp.sum(delta_rule(*given, rows, chunk=8)[0] * factors)

    slopes = jax.jit(jax.grad(ours))(tuple(jnp.asarray(x, jnp.float32) for x in given))
    for i, slope in enumerate(slopes):
        direction = rng.normal(size=given[i].shape)
        up, down = (
            total([x + sign * 1e-5 * direction if j == i else x for j, x in enumerate(given)])
            for sign in (1, -1)
        )
        wanted = (up - down) / 2e-5
        np.testing.assert_allclose((slope * direction).sum(), wanted, rtol=1e-4, atol=1e-4)


def test_decays_of_many_sequences_do_not_overflow():
    """Sums of g over a chunk differ by thousands between tokens that do not see each other."""
    rows, sequences = rows_of([(4,), (5, 3, 3), (4,)])
    q, k, v, beta, g = inputs(rows.segment.shape[1])
    given = (q, k, v, beta, 300 * g)

    def total(x):
        return delta_rule(*x, rows, chunk=8)[0].sum()

    out, _ = chunked(given, rows, chunk=8)
    slopes = jax.jit(jax.grad(total))(tuple(jnp.asarray(x, jnp.float32) for x in given))
    real = rows.segment[0] > 0
    wanted = by_recurrence(given, sequences)
    np.testing.assert_allclose(out[0][real], wanted[real], rtol=1e-5, atol=1e-5)
    assert all(np.isfinite(x).all() for x in slopes)


def test_one_branch_a_prompt_needs_one_state():
    rows, sequences = rows_of([(3,), (5, 9), (0, 4)], branches=1)
    given = inputs(rows.segment.shape[1])
    out, _ = chunked(given, rows, chunk=4)
    real = rows.segment[0] > 0
    wanted = by_recurrence(given, sequences)
    np.testing.assert_allclose(out[0][real], wanted[real], rtol=1e-5, atol=1e-5)


def test_a_branch_without_a_place_is_nan():
    rows, _ = rows_of([(3, 2, 2)], branches=1)
    out, _ = chunked(inputs(rows.segment.shape[1]), rows, chunk=4)
    np.testing.assert_array_equal(np.isnan(out[0]).any((1, 2)), rows.branch[0] > 1)


@pytest.mark.parametrize("pad", [0, 5, 9])
def test_a_sequence_continues_from_its_state(pad):
    """Padding on the left, as in generation; then 4 tokens more, then one."""
    length = 14
    given = inputs(pad + length)
    segment = np.array([[0] * pad + [1] * length])
    state, outs = None, []
    for start, stop in ((0, pad + 9), (pad + 9, pad + 13), (pad + 13, pad + 14)):
        part = segment[:, start:stop]
        rows = RowMask(part, part * 0, part * 0, branches=1)
        out, state = chunked([x[:, start:stop] for x in given], rows, state, chunk=4)
        outs.append(out)
    wanted, last = recurrence(*(x[0, pad:] for x in given))
    np.testing.assert_allclose(np.concatenate(outs, 1)[0, pad:], wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(state[0], last, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("branches", [1, 4])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_earlier_tokens_are_the_earlier_tokens_of_the_sequence(layout, branches):
    if branches == 1 and any(len(parts) > 2 for parts in layout):
        return
    rows, sequences = rows_of(layout, branches=branches)
    x = 1.0 + np.arange(rows.segment.shape[1])[None, :, None]
    for steps in (1, 2, 5):
        found = np.asarray(before(x, rows, steps))[0, :, 0]
        for places in sequences:
            wanted = [0.0] * steps + [1.0 + place for place in places]
            np.testing.assert_array_equal(found[places], wanted[: len(places)])


@pytest.mark.parametrize("size", [1, 2, 5, 64])
def test_the_inverse_of_a_lower_matrix(size):
    drawn = np.random.default_rng(size).uniform(-0.5, 0.5, (2, 3, size, size))
    lower = np.tril(drawn, -1)
    found = unit_lower_inverse(jnp.asarray(lower, jnp.float32))
    wanted = np.linalg.inv(np.eye(size) + lower)
    np.testing.assert_allclose(found, wanted, atol=1e-6 * np.abs(wanted).max())


def test_the_inverse_is_exact_where_powers_of_the_matrix_overflow_their_digits():
    equal = np.tril(np.ones((64, 64), np.float32), -1)  # equal keys, written in full, no decay
    wanted = np.eye(64) - np.eye(64, k=-1)
    np.testing.assert_array_equal(unit_lower_inverse(jnp.asarray(equal)), wanted)
