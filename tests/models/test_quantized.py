"""A frozen base in 8 or 4 bits: the size of its error, and that the rest is exact."""

import sys

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from lib import runs as h
from lib import steps as helpers_step
from lib.adapters import randomized
from lib.steps import MESHES, B, assert_same, batch_of, dense_loss, one_device, some_examples
from safetensors.numpy import load_file

from jaxalign.core import layouts
from jaxalign.core.sharding import batch_shards, make_mesh, put_batch
from jaxalign.errors import UserError
from jaxalign.hf.peft import low_rank
from jaxalign.models.adapted import adapt, materialized
from jaxalign.models.decoder import build
from jaxalign.models.families import read_config
from jaxalign.models.quantized import BLOCK, Quantized, quantize
from jaxalign.objectives import OBJECTIVES
from jaxalign.recipe.read import parse
from jaxalign.settings import Lora
from jaxalign.update.forward import Task
from jaxalign.update.gradient import value_and_grad

pytestmark = pytest.mark.slow

WIDE = helpers_step.LLAMA | {"hidden_size": 128, "intermediate_size": 192}
KINDS = ("int8", "nf4")
# Relative to the norm of all logits. Both follow from the rounding of the weights: at most 1/255
# of the largest magnitude of a column, and 0.152 of the largest of a block.
LOGITS = {"int8": 0.01, "nf4": 0.1}


def wide(mesh=None, **options):
    mesh = mesh or one_device()
    model = build(read_config(WIDE), mesh, **options)
    adapted = adapt(model, low_rank(Lora(rank=4), model.spec, "lora"))
    return adapted, helpers_step.parameters(model), randomized(adapted, 0.1)


def kept(params, kind):
    flat = flatten_dict(params)
    return unflatten_dict({path: quantize(path, leaf, kind) for path, leaf in flat.items()})


def plain(params):
    """Quantized parameters as ordinary arrays."""
    is_quantized = lambda x: isinstance(x, Quantized)  # noqa: E731
    as_array = lambda x: x.astype("float32") if is_quantized(x) else x  # noqa: E731
    return jax.tree.map(as_array, params, is_leaf=is_quantized)


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_is_off_by_no_more_than_the_step(kind):
    _, params, _ = wide()
    for path, leaf in flatten_dict(params).items():
        found = quantize(path, leaf, kind)
        if path[0] != "layers" or path[-1] != "kernel":
            assert found is leaf
            continue
        before, after = np.asarray(leaf), np.asarray(found.astype("float32"))
        rows = before.shape[1] if kind == "int8" else BLOCK
        blocks = (x.reshape(x.shape[0], -1, rows, x.shape[2]) for x in (before, after - before))
        largest, error = (np.abs(x).max(2) for x in blocks)
        # nf4's widest gap, between -1 and -0.696, is halved.
        assert (error <= largest * {"int8": 1.001 / 255, "nf4": 0.1520}[kind]).all()
        assert jax.tree.leaves(found)[0].dtype == {"int8": "int8", "nf4": "uint4"}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_logits_keep_the_stated_tolerance(kind):
    model, params, _ = wide()
    ids = np.random.default_rng(0).integers(0, helpers_step.VOCAB, (4, 32))
    rows = (ids, np.broadcast_to(np.arange(32), ids.shape), np.ones_like(ids), np.zeros_like(ids))

    def logits(params):
        with jax.set_mesh(model.mesh):
            hidden, head, *_ = jax.jit(model.base.forward)(params, *rows)
            return np.asarray(head.logits(hidden))

    exact, rounded = logits(params), logits(kept(params, kind))
    error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert 0 < error < LOGITS[kind]


def gradient(kind, mesh, name="dpo"):
    objective = OBJECTIVES[name]
    model, params, adapters = wide(mesh, remat="full")
    batch = batch_of(some_examples(layouts.PAIRS, B), 2, batch_shards(mesh))
    task = Task(objective, {}, model.forward)
    with jax.set_mesh(mesh):
        run = jax.jit(lambda p, b, f: value_and_grad(task.with_base(f), p, b, ref_params={}))
        found = run(adapters, put_batch(batch, mesh), kept(params, kind))
    return jax.tree.map(np.asarray, (found.loss, found.grads))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axes", ["one", "mixed"])
def test_the_gradient_is_exact_beside_the_rounded_base(kind, axes):
    model, params, adapters = wide()
    base = plain(kept(params, kind))
    items = some_examples(layouts.PAIRS, B)

    def loss(adapters):
        merged = plain_merge(model, base, adapters)
        return dense_loss(OBJECTIVES["dpo"], {}, model.base, merged, base, items)

    with jax.set_mesh(model.mesh):
        wanted = jax.tree.map(np.asarray, jax.jit(jax.value_and_grad(loss))(adapters))
    mesh = model.mesh if axes == "one" else make_mesh(MESHES[axes])
    # Adapters have small gradients: sums of larger terms that cancel.
    assert_same(gradient(kind, mesh), wanted, tolerance=2e-5)


def plain_merge(model, base, adapters):
    scale = model.low_rank.scale
    flat, low = flatten_dict(base), flatten_dict(adapters)
    for path in low:
        if path[-1] == "lora_b":
            product = low[(*path[:-1], "lora_a")] @ low[path]
            flat[(*path[:-1], "kernel")] += scale * product
    return unflatten_dict(flat)


def test_merging_adds_to_the_rounded_base():
    model, params, adapters = wide()
    base = kept(params, "int8")
    found = materialized(model.merged(base, adapters), model.base)
    wanted = plain_merge(model, plain(base), adapters)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, wanted)


def test_a_run_compares_with_the_base_that_it_trains_beside(inputs, tmp_path):
    """Live and cached references are the rounded base; the export is what was trained."""
    losses = {}
    for mode in ("live", "cached"):
        folder = tmp_path / mode
        options = {
            "lora": {"rank": 4, "alpha": 8.0, "quantize": "int8"},
            "reference": {"mode": mode},
        }
        options = {f"stages__dpo__{k}": v for k, v in options.items()}
        h.run(parse(h.values(inputs, folder, "dpo", **options)), h.one_device())
        losses[mode] = [line["loss"] for line in h.metrics(folder / "dpo")]
        assert losses[mode][0] == pytest.approx(np.log(2), abs=1e-5)
        assert losses[mode][-1] < 0.6
    assert losses["live"] == pytest.approx(losses["cached"], abs=1e-4)
    merged = load_file(folder / "dpo" / "model" / "model.safetensors")
    adapter = load_file(folder / "dpo" / "adapter" / "adapter_model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    a, b = (adapter[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
    exact = h.tensors(inputs / "model")[f"{name}.weight"]
    step = np.abs(exact).max(1, keepdims=True) / 127.5
    rounded = step * np.clip(np.round(exact / step), -128, 127)
    sure = np.abs(exact / step) < 127  # the largest is between two numbers
    error = np.abs(merged[f"{name}.weight"] - (rounded + 2 * b @ a))
    assert error[sure].max() < 1e-6


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_the_matrices_of_experts_are_quantized_one_by_one(kind):
    leaf = jax.random.normal(jax.random.key(0), (2, 3, 128, 8))
    path = ("layers", "0", "mlp", "up", "kernel")
    whole = quantize(path, leaf, kind).astype("float32")
    each = [quantize(path, leaf[:, e], kind).astype("float32") for e in range(3)]
    np.testing.assert_array_equal(whole, np.stack(each, 1))


def test_a_router_is_not_quantized():
    leaf = np.zeros((2, 64, 8), np.float32)
    assert quantize(("layers", "0", "mlp", "router", "kernel"), leaf, "nf4") is leaf


def test_rows_that_a_block_does_not_divide_are_refused():
    leaf = np.zeros((2, 96, 8), np.float32)
    with pytest.raises(UserError, match=r"does not divide the 96 rows of layers.mlp.kernel; use"):
        quantize(("layers", "mlp", "kernel"), leaf, "nf4")


def test_that_qwix_is_missing_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(UserError, match=r"needs qwix; pip install 'jaxalign\[quantize\]'"):
        quantize(("layers", "mlp", "kernel"), np.zeros((2, 64, 8), np.float32), "int8")
