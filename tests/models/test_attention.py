"""Every attention backend against the dense formula, and which backend serves what."""

import functools
from types import SimpleNamespace
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.core.sharding import make_mesh
from jaxalign.models.attention import splash as splash_module
from jaxalign.models.attention.api import (
    Part,
    _log_refusal,
    attend,
    attend_cached,
    backend,
    coarse,
)
from jaxalign.models.attention.blocked import blocked
from jaxalign.models.attention.cudnn import cudnn
from jaxalign.models.attention.mask import RowMask
from jaxalign.models.attention.splash import splash
from jaxalign.settings import Mesh

CPU = SimpleNamespace(platform="cpu")
TPU = SimpleNamespace(platform="tpu")
H100, A100, T4, MI300 = (
    SimpleNamespace(platform="gpu", compute_capability=c) for c in ("9.0", "8.0", "7.5", "gfx942")
)


def dense(q, k, v, mask):
    """The formula, with all scores at once; 0 where a query sees nothing."""
    k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], 2) for x in (k, v))
    s = jnp.einsum("bihc,bjhc->bhij", q, k) / np.sqrt(q.shape[3])
    if mask.softcap is not None:
        s = mask.softcap * jnp.tanh(s / mask.softcap)
    e, b, x = mask.segment, mask.branch, mask.positions
    i = np.arange(e.shape[1])
    sees = (e[:, :, None] == e[:, None]) & (e[:, None] > 0) & (i[:, None] >= i)
    sees &= (b[:, None] == 0) | (b[:, None] == b[:, :, None])
    if mask.window is not None:
        sees &= x[:, :, None] - x[:, None] < mask.window
    p = jnp.where(sees[:, None], jnp.exp(s - s.max(-1, keepdims=True)), 0.0)
    p = p / jnp.maximum(p.sum(-1, keepdims=True), 1e-30)
    return jnp.einsum("bhij,bjhc->bihc", p, v)


def pack(rows, length, **static):
    """Rows of examples, each (prompt length, response lengths) -> their mask, then padding."""
    segment, branch, positions = np.zeros((3, len(rows), length), np.int32)
    for n, examples in enumerate(rows):
        at = 0
        for e, (prompt, responses) in enumerate(examples, 1):
            for b, size in enumerate((prompt, *responses)):
                span = slice(at, at + size)
                at += size
                first = prompt if b else 0
                segment[n, span], branch[n, span] = e, b
                positions[n, span] = np.arange(first, first + len(segment[n, span]))
    return RowMask(segment, branch, positions, **static)


def tensors(rows, length, heads, groups, width, seed=0):
    """Random q, k, v and a cotangent of the result."""
    shapes = [(rows, length, n, width) for n in (heads, groups, groups, heads)]
    keys = jax.random.split(jax.random.key(seed), 4)
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def value_and_gradients(run, q, k, v, cotangent, mask):
    """(result, dq, dk, dv), with nothing flowing in from padding, where results mean nothing."""
    real = (mask.segment > 0)[..., None, None]
    out, vjp = jax.vjp(lambda *x: jnp.where(real, run(*x, mask), 0.0), q, k, v)
    return out, *vjp(cotangent)


def check(run, arrays, mask):
    both = jax.jit(lambda *x: [value_and_gradients(f, *x) for f in (run, dense)])
    chex.assert_trees_all_close(*both(*arrays, mask), atol=1e-5, rtol=1e-5)


def interpreted():
    """Runs splash on any device. (`force_tpu_interpret_mode` does not know `jax.vmap`.)"""
    make = splash_module.splash_attention.make_splash_mha
    slow = functools.partial(make, interpret=True)
    return mock.patch.object(splash_module.splash_attention, "make_splash_mha", slow)


sizes = st.integers(1, 60)
examples = st.tuples(sizes, st.lists(sizes, min_size=1, max_size=3))
rows = st.lists(st.lists(examples, max_size=4), min_size=1, max_size=2)


@settings(max_examples=12, deadline=None)
@given(
    rows=rows,
    length=st.sampled_from([1, 63, 64, 100, 130]),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    window=st.sampled_from([None, 1, 20]),
    softcap=st.sampled_from([None, 1.5]),
)
def test_blocked_is_the_formula(rows, length, heads, window, softcap):
    mask = pack(rows, length, window=window, softcap=softcap)
    check(blocked, tensors(len(rows), length, *heads, 8), mask)


@pytest.mark.slow
def test_blocked_is_the_formula_beyond_short_rows():
    mask = pack([[(100, (200, 150)), (40, (60, 60))]], 650)
    for run in (blocked, coarse):
        check(run, tensors(1, 650, 4, 2, 8), mask)


def test_blocked_leaves_out_what_nobody_sees():
    mask = pack([[(64, (64, 64))]], 192)
    q, k, v, _ = tensors(1, 192, 4, 2, 8)
    spoiled = v.at[:, 64:128].set(jnp.nan)  # the first response
    out = jax.jit(blocked)(q, k, spoiled, mask)
    np.testing.assert_array_equal(np.isnan(out).any((0, 2, 3)), mask.branch[0] == 1)


@pytest.mark.slow
@settings(max_examples=4, deadline=None)
@given(
    rows=rows,
    length=st.sampled_from([128, 256]),
    heads=st.sampled_from([(1, 1), (4, 2)]),
    softcap=st.sampled_from([None, 1.5]),
)
def test_splash_is_the_formula(rows, length, heads, softcap):
    mask = pack(rows, length, branches=3, softcap=softcap)
    with interpreted():
        check(splash, tensors(len(rows), length, *heads, 128), mask)


def test_splash_has_windows_where_each_prompt_has_one_response():
    mask = pack([[(30, [40]), (9, [5]), (3, [60])], [(100, [156])]], 256, branches=1, window=20)
    with interpreted():
        check(splash, tensors(2, 256, 2, 1, 128), mask)


def test_splash_gives_nan_to_a_response_that_it_was_not_told_of():
    mask = pack([[(5, (5, 5, 5)), (5, (5, 5))]], 128)
    with interpreted():
        out = splash(*tensors(1, 128, 1, 1, 128)[:3], mask)
    np.testing.assert_array_equal(np.isnan(out).all((2, 3)), mask.branch > 2)


def test_splash_lowers_for_a_tpu_on_any_machine():
    mask = pack([[(60, (100, 90))]] * 2, 256)
    arrays = [x.astype(jnp.bfloat16) for x in tensors(2, 256, 4, 2, 128)]
    run = jax.jit(functools.partial(value_and_gradients, splash))
    text = run.trace(*arrays, mask).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == 3  # forward, dq, dk and dv


@pytest.mark.parametrize("run", [blocked, splash])
def test_a_query_that_sees_nothing_is_finite_with_a_finite_gradient(run):
    mask = pack([[]], 128)
    q, k, v, _ = tensors(1, 128, 1, 1, 128)
    slope = jax.value_and_grad(lambda q, k, v: run(q, k, v, mask).sum(), (0, 1, 2))
    with interpreted():
        chex.assert_tree_all_finite(jax.jit(slope)(q, k, v))


def test_bfloat16_keeps_scores_and_sums_in_float32():
    mask = pack([[(40, (50, 30))]], 128)
    coarse = [x.astype(jnp.bfloat16) for x in tensors(1, 128, 4, 2, 16)]
    exact = [x.astype(jnp.float32) for x in coarse]
    found = jax.jit(functools.partial(value_and_gradients, blocked))(*coarse, mask)
    wanted = jax.jit(functools.partial(value_and_gradients, dense))(*exact, mask)
    assert {x.dtype for x in found} == {jnp.dtype(jnp.bfloat16)}
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_allclose(x.astype(jnp.float32), y, atol=0.02, rtol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 1, 4), (1, 1, 3), (1, 3, 1)])
def test_every_mesh_computes_the_formula(sizes):
    """Two key heads: cut by 2, repeated for 4, whole on each of 3; four rows: cut by 4, not 3."""
    axes = dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))
    mesh = make_mesh(Mesh(**axes), jax.devices()[: np.prod(sizes)])
    mask = pack([[(9, (9, 5))], [(3, (20,))], [], [(1, (1, 1))]], 32)
    check(functools.partial(attend, mesh=mesh), tensors(4, 32, 4, 2, 8), mask)


@pytest.mark.slow
def test_devices_exchange_nothing():
    mesh = make_mesh(Mesh(data=2, fsdp=2, tensor=2))
    mask = pack([[(9, (9, 5))]] * 4, 32)
    layout = jax.NamedSharding(mesh, jax.P(("data", "fsdp"), None, "tensor"))
    arrays = jax.device_put(tensors(4, 32, 4, 2, 8), layout)
    run = functools.partial(value_and_gradients, functools.partial(attend, mesh=mesh))
    text = jax.jit(run).lower(*arrays, mask).compile().as_text()
    assert not any(name in text for name in ("all-gather", "all-reduce", "all-to-all", "permute"))


# Which backend


QUERIES = jax.ShapeDtypeStruct((1, 256, 4, 128), jnp.bfloat16)
ODD = jax.ShapeDtypeStruct((1, 255, 4, 128), jnp.bfloat16)
WIDE = jax.ShapeDtypeStruct((1, 256, 4, 256), jnp.bfloat16)
WIDER = jax.ShapeDtypeStruct((1, 256, 4, 264), jnp.bfloat16)
FULL = jax.ShapeDtypeStruct((1, 256, 4, 128), jnp.float32)
CHOICES = {
    "cpu": (CPU, QUERIES, {}, blocked),
    "tpu": (TPU, QUERIES, {}, splash),
    "tpu, float32": (TPU, FULL, {}, splash),
    "tpu, soft cap": (TPU, QUERIES, {"softcap": 30.0}, splash),
    "tpu, window": (TPU, QUERIES, {"window": 64}, coarse),
    "tpu, window, one response": (TPU, QUERIES, {"window": 64, "branches": 1}, splash),
    "tpu, odd length": (TPU, ODD, {}, coarse),
    "nvidia": (H100, QUERIES, {}, cudnn),
    "nvidia, window": (H100, QUERIES, {"window": 64}, cudnn),
    "nvidia, soft cap": (H100, QUERIES, {"softcap": 30.0}, coarse),
    "nvidia, float32": (H100, FULL, {}, coarse),
    "nvidia, odd length": (H100, ODD, {}, coarse),
    "nvidia, wide heads": (H100, WIDE, {}, cudnn),
    "nvidia, wider heads": (H100, WIDER, {}, coarse),
    "nvidia before Hopper": (A100, QUERIES, {}, cudnn),
    "nvidia before Hopper, wide heads": (A100, WIDE, {}, coarse),
    "nvidia, old": (T4, QUERIES, {}, coarse),
    "amd": (MI300, QUERIES, {}, coarse),
}


@pytest.mark.parametrize("device, q, static, wanted", CHOICES.values(), ids=CHOICES)
def test_the_backend_follows_the_device_and_what_its_kernel_takes(device, q, static, wanted):
    assert backend(device, q, pack([[]], q.shape[1], **static)) is wanted


def test_the_log_says_once_why_a_kernel_is_refused(caplog):
    _log_refusal.cache_clear()
    for _ in range(2):
        backend(H100, FULL, pack([[]], 256))
        backend(CPU, FULL, pack([[]], 256))
    assert [record.message for record in caplog.records] == [
        "attention runs in plain JAX, not in cuDNN: it needs half precision, not float32"
    ]


@pytest.mark.parametrize("cap", [None, 5.0])
def test_a_query_of_generation_that_sees_nothing_is_finite_with_a_finite_gradient(cap):
    x = jax.random.normal(jax.random.key(0), (1, 3, 2, 4))
    blind = jnp.zeros((1, 3, 3), bool)

    def total(x):
        return attend_cached(x, [Part(*[x.swapaxes(1, 2)] * 2, blind)], 1.0, cap).sum()

    value, slope = jax.value_and_grad(total)(x)
    chex.assert_tree_all_finite((value, slope))


@pytest.mark.parametrize("cap", [None, 2.0])
def test_attention_of_generation_is_the_formula(cap):
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 5, 4, 8))
    k, v = k[:, :, :2], v[:, :, :2]
    sees = jnp.tril(jnp.ones((5, 5), bool))[None].repeat(2, 0)
    s = 0.7 * jnp.einsum("klhc,kjhc->khlj", q, k.repeat(2, 2))
    s = s if cap is None else cap * jnp.tanh(s / cap)
    p = jax.nn.softmax(jnp.where(sees[:, None], s, -jnp.inf), -1)
    wanted = jnp.einsum("khlj,kjhc->klhc", p, v.repeat(2, 2))
    own = Part(k.swapaxes(1, 2), v.swapaxes(1, 2), sees)
    found = attend_cached(q, [own], 0.7, cap)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sinks", [None, jnp.arange(4.0)])
def test_keys_that_several_rows_share_count_as_keys_of_each(sinks):
    q = jax.random.normal(jax.random.key(0), (6, 1, 4, 8))
    shared, own = (jax.random.normal(jax.random.key(i), (n, 2, 5, 8)) for i, n in ((1, 2), (2, 6)))
    sees = jax.random.bernoulli(jax.random.key(3), 0.7, (2, 6, 1, 5)).at[:, :, :, 0].set(True)
    parts = [Part(shared, shared, sees[0]), Part(own, own, sees[1])]
    found = attend_cached(q, parts, 0.5, sinks=sinks)
    both = jnp.concatenate([shared.repeat(3, 0), own], 2)
    joined = Part(both, both, jnp.concatenate(list(sees), -1))
    wanted = attend_cached(q, [joined], 0.5, sinks=sinks)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
