import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import stats
from jaxalign.head import token_stats

NEEDS = (stats.logp, stats.log_complement)


def problem(m=10, shards=2, d=8, v=33):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(shards, m, d)), jnp.float32)
    head = jnp.asarray(rng.normal(size=(d, v)), jnp.float32)
    target = jnp.asarray(rng.integers(0, v, (shards, m)), jnp.int32)
    return hidden, head, target


def dense(hidden, head, target):
    logits = np.asarray(hidden, np.float64) @ np.asarray(head, np.float64)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    p = np.take_along_axis(p, np.asarray(target)[..., None], -1)[..., 0]
    return {"logp": np.log(p), "log_complement": np.log1p(-p)}


@pytest.mark.parametrize("chunk", [1, 3, 10, 64])
def test_statistics_equal_dense_float64_at_any_chunk(chunk):
    args = problem()
    chex.assert_trees_all_close(
        jax.tree.map(np.asarray, token_stats(*args, NEEDS, chunk=chunk)), dense(*args), rtol=1e-5
    )


def test_gradients_do_not_depend_on_the_chunk():
    hidden, head, target = problem()

    def loss(h, w, chunk):
        out = token_stats(h, w, target, NEEDS, chunk=chunk)
        return jnp.sum(out["logp"] * jnp.arange(10.0)) + jnp.sum(out["log_complement"] ** 2)

    whole = jax.grad(loss, (0, 1))(hidden, head, 10)
    chunked = jax.grad(loss, (0, 1))(hidden, head, 4)
    chex.assert_trees_all_close(whole, chunked, rtol=1e-5, atol=1e-5)


def test_only_declared_statistics_are_computed():
    assert set(token_stats(*problem(), (stats.logp,))) == {"logp"}


def test_statistics_are_float32_for_bfloat16_operands():
    hidden, head, target = problem()
    out = token_stats(hidden.astype(jnp.bfloat16), head.astype(jnp.bfloat16), target, NEEDS)
    assert all(x.dtype == jnp.float32 for x in out.values())


def test_logits_of_the_whole_batch_are_never_in_memory():
    m, v = 4096, 8192
    shape = jax.ShapeDtypeStruct
    args = (
        shape((1, m, 16), jnp.float32), shape((16, v), jnp.float32), shape((1, m), jnp.int32)
    )  # fmt: skip

    def loss(h, w, y):
        return token_stats(h, w, y, NEEDS, chunk=256)["logp"].sum()

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*args).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    assert analysis.temp_size_in_bytes < 4 * m * v / 4
