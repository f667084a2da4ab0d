import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.core import stats
from jaxalign.models.layers.head import Head
from jaxalign.update.gradient import sum_over_chunks
from jaxalign.update.head import token_stats

NEEDS = (stats.logp, stats.log_complement)


def problem(m=10, shards=2, d=8, v=33):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(shards, m, d)), jnp.float32)
    head = jnp.asarray(rng.normal(size=(d, v)), jnp.float32)
    target = jnp.asarray(rng.integers(0, v, (shards, m)), jnp.int32)
    return hidden, head, target


def dense(hidden, head, target, cap=None):
    logits = np.asarray(hidden, np.float64) @ np.asarray(head, np.float64)
    logits = logits if cap is None else cap * np.tanh(logits / cap)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    p = np.take_along_axis(p, np.asarray(target)[..., None], -1)[..., 0]
    return {"logp": np.log(p), "log_complement": np.log1p(-p)}


@pytest.mark.parametrize("cap", [None, 3.0])
def test_statistics_equal_dense_float64(cap):
    hidden, head, target = problem()
    found = token_stats(hidden, Head(head, cap), target, NEEDS)
    wanted = dense(hidden, head, target, cap)
    chex.assert_trees_all_close(jax.tree.map(np.asarray, found), wanted, rtol=1e-5)


def weighted_sum(hidden, head, chunk):
    target, weight = chunk
    out = token_stats(hidden, head, target, NEEDS)
    share = out["logp"] * weight + out["log_complement"] ** 2
    return share.sum(), ([], out["logp"])


def chunked(g, dtype="float32", cap=None):
    """A sum over the tokens of `problem` in g chunks: value, statistics [S, M], gradients."""
    hidden, head, target = problem()

    def cut(x):
        return jnp.moveaxis(x.reshape(2, g, -1, *x.shape[2:]), 1, 0)

    weight = jnp.broadcast_to(jnp.arange(10.0), target.shape)
    hidden, head = hidden.astype(dtype), Head(head.astype(dtype), cap)
    chunks = cut(target), cut(weight)
    out = jax.jit(lambda h, w: sum_over_chunks(weighted_sum, h, w, chunks))(cut(hidden), head)
    value, _, logp, d_hidden, d_head = out
    logp, d_hidden = (jnp.moveaxis(x, 0, 1).reshape(2, 10, -1) for x in (logp, d_hidden))
    return value, logp[..., 0], d_hidden, d_head.matrix


@pytest.mark.parametrize("cap", [None, 3.0])
def test_chunks_give_the_value_and_the_gradients_of_the_whole(cap):
    hidden, head, target = problem()
    weight = jnp.broadcast_to(jnp.arange(10.0), target.shape)

    def plain(h, w):  # autodiff of log_softmax, nothing of ours in it
        z = h @ w if cap is None else cap * jnp.tanh(h @ w / cap)
        logp = jnp.take_along_axis(jax.nn.log_softmax(z), target[..., None], -1)[..., 0]
        return jnp.sum(logp * weight + jnp.log(-jnp.expm1(logp)) ** 2)

    value, grads = jax.value_and_grad(plain, (0, 1))(hidden, head)
    for g in (1, 2, 5):
        got = chunked(g, cap=cap)
        chex.assert_trees_all_close(got[0], value, rtol=1e-5)
        chex.assert_trees_all_close(got[2:], grads, rtol=1e-5, atol=1e-5)


def test_gradients_come_back_in_the_dtype_of_the_operands():
    exact = chunked(1)
    for g in (1, 5):
        got = chunked(g, "bfloat16")
        assert [x.dtype for x in got] == ["float32", "float32", "bfloat16", "bfloat16"]
        for ours, want in zip(got[2:], exact[2:], strict=True):
            assert np.abs(np.float32(ours) - want).max() < 0.02 * np.abs(want).max()


def test_only_declared_statistics_are_computed():
    hidden, head, target = problem()
    assert set(token_stats(hidden, Head(head), target, (stats.logp,))) == {"logp"}


def test_statistics_are_float32_for_bfloat16_operands():
    hidden, head, target = problem()
    out = token_stats(hidden.astype(jnp.bfloat16), Head(head.astype(jnp.bfloat16)), target, NEEDS)
    assert all(x.dtype == jnp.float32 for x in out.values())


def test_no_more_than_the_logits_of_one_chunk_are_in_memory_and_those_once():
    m, v = 4096, 8192
    shape = jax.ShapeDtypeStruct
    args = (
        shape((16, 1, m // 16, 16), jnp.float32),
        Head(shape((16, v), jnp.float32)),
        shape((16, 1, m // 16), jnp.int32),
    )

    def step(h, w, y):
        items = y, jnp.ones(y.shape)
        return sum_over_chunks(weighted_sum, h, w, items)

    compiled = jax.jit(step).lower(*args).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    assert analysis.temp_size_in_bytes < 1.2 * 4 * m * v / 16
