import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lib.checkpoints import CONFIGS, SMALL, logits, plain_rows
from lib.steps import one_device

from jaxalign.core.sharding import make_mesh
from jaxalign.errors import UserError
from jaxalign.models.attention.mask import RowMask
from jaxalign.models.decoder import build
from jaxalign.models.families import read_config
from jaxalign.settings import Mesh

LLAMA = SMALL | CONFIGS["llama-gqa"]
NEOX = SMALL | CONFIGS["neox-parallel"]
QWEN = SMALL | CONFIGS["qwen2-tied"]
FAMILIES = {"llama": LLAMA, "neox": NEOX, "qwen2": QWEN}
ROW_KEYS = ("ids", "positions", "segment", "branch")


@functools.cache
def host_params(family):
    config = read_config(FAMILIES[family])
    model = build(config, one_device())
    return jax.device_get(model.init(jax.random.key(0)))


def random_model(family="llama", mesh=None, **options):
    mesh = mesh or one_device()
    model = build(read_config(FAMILIES[family]), mesh, **options)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, model.abstract)
    return model, jax.device_put(host_params(family), shardings)


@functools.cache
def gradient(sizes, remat):
    """The gradient of the squared hidden states of eight rows, on a mesh."""
    rows = plain_rows([9, 9, 5, 9, 9, 1, 9, 2], 9).values()
    data, fsdp, tensor = sizes
    devices = jax.devices()[: data * fsdp * tensor]
    mesh = make_mesh(Mesh(data=data, fsdp=fsdp, tensor=tensor), devices)
    model, params = random_model(mesh=mesh, remat=remat)
    with jax.set_mesh(mesh):
        slope = jax.jit(jax.grad(lambda p: jnp.square(model.forward(p, *rows).hidden).sum()))
        return jax.device_get(slope(params))


def packed_row():
    """Two examples in a row: prompts of 3 and 2, two responses each, then padding."""
    segment = [1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 0, 0]
    branch = [0, 0, 0, 1, 1, 2, 2, 2, 0, 0, 1, 2, 2, 0, 0]
    positions = [0, 1, 2, 3, 4, 3, 4, 5, 0, 1, 2, 2, 3, 0, 0]
    columns = (np.arange(10, 25), positions, segment, branch)
    return {k: np.array([v], np.int32) for k, v in zip(ROW_KEYS, columns, strict=True)}


def mask_of(row):
    return np.asarray(RowMask(row["segment"], row["branch"], row["positions"]).visible())[0]


# Configuration


def test_the_branch_mask_is_prompt_plus_own_branch():
    row = packed_row()
    segment, branch = row["segment"][0], row["branch"][0]
    length = len(segment)
    wanted = [
        [
            bool(segment[q] == segment[k] != 0 and k <= q and branch[k] in (0, branch[q]))
            for k in range(length)
        ]
        for q in range(length)
    ]
    np.testing.assert_array_equal(mask_of(row), wanted)


# The decoder


@pytest.mark.parametrize("family", ["llama", "neox"])
def test_a_position_depends_on_exactly_what_the_mask_allows(family):
    model, params = random_model(family)
    row = packed_row()

    def outputs(embed):
        hidden = model.forward(params | {"embed": embed}, *row.values()).hidden
        return (hidden[0] * jnp.arange(1.0, 1 + model.spec.width)).sum(-1)

    slopes = jax.jit(jax.jacrev(outputs))(params["embed"])
    used = np.any(np.asarray(slopes)[:, row["ids"][0]] != 0, -1)
    real = row["segment"][0] > 0
    np.testing.assert_array_equal(used[real], mask_of(row)[real])


def test_packed_branches_equal_separate_sequences():
    model, params = random_model()
    row = packed_row()
    packed = logits(model, params, row)[0]
    for segment, branch in ((1, 1), (1, 2), (2, 1), (2, 2)):
        at = (row["segment"][0] == segment) & np.isin(row["branch"][0], (0, branch))
        alone = plain_rows([at.sum()], at.sum()) | {"ids": row["ids"][:, at]}
        np.testing.assert_allclose(logits(model, params, alone)[0], packed[at], atol=1e-5)


def test_padding_gives_finite_hidden_states():
    model, params = random_model()
    assert np.isfinite(logits(model, params, plain_rows([5, 0], 9))).all()


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_does_not_change_gradients(remat):
    exact = gradient((1, 1, 1), "none")
    chex.assert_trees_all_close(gradient((1, 1, 1), remat), exact, rtol=1e-5, atol=1e-5)


def test_compute_dtype_and_parameter_dtype_are_apart():
    model, params = random_model(dtype="bfloat16", param_dtype="float32")
    hidden, head, *_ = jax.eval_shape(model.forward, params, *plain_rows([4], 4).values())
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(params)}
    assert (hidden.dtype, head.matrix.dtype, dtypes) == (
        jnp.bfloat16,
        jnp.bfloat16,
        {jnp.dtype("f4")},
    )


def test_bfloat16_is_close_to_float32():
    exact, params = random_model()
    coarse = dataclasses.replace(exact, dtype=jnp.dtype("bfloat16"))
    rows = plain_rows([12, 7], 12)
    np.testing.assert_allclose(logits(coarse, params, rows), logits(exact, params, rows), atol=0.03)


def test_parameters_match_the_abstract_tree():
    model, params = random_model()
    chex.assert_trees_all_equal_shapes_and_dtypes(params, model.abstract)


def test_tied_models_have_no_head_parameter():
    model, params = random_model("qwen2")
    head = model.forward(params, *plain_rows([3], 3).values()).head
    assert "head" not in params
    np.testing.assert_array_equal(head.matrix, params["embed"].T)


@pytest.mark.slow
def test_init_is_laid_out_over_the_mesh_and_does_not_depend_on_it():
    model, _ = random_model(mesh=make_mesh(Mesh(data=2, fsdp=2, tensor=2)))
    params = model.init(jax.random.key(0))
    jax.tree.map(lambda x, a: chex.assert_equal(x.sharding, a.sharding), params, model.abstract)
    chex.assert_trees_all_close(jax.device_get(params), host_params("llama"), atol=1e-6)


def test_a_mesh_that_does_not_divide_a_parameter_is_refused():
    mesh = make_mesh(Mesh(data=1, fsdp=1, tensor=8))
    with pytest.raises(UserError, match=r"parameter layers.0.mlp.down.kernel \(2, 36, 32\)"):
        build(read_config(LLAMA | {"intermediate_size": 36}), mesh)


@pytest.mark.slow
def test_a_sharded_gradient_needs_no_involuntary_rematerialization(capfd):
    model, params = random_model(mesh=make_mesh(Mesh(data=2, fsdp=2, tensor=2)), remat="full")
    rows = plain_rows([9] * 8, 9).values()
    shardings = jax.tree.map(lambda leaf: leaf.sharding, model.abstract)
    with jax.set_mesh(model.mesh):

        def loss(p):
            encoded = model.forward(p, *rows)
            return jnp.square(encoded.head.logits(encoded.hidden)).sum()

        slope = jax.grad(loss)
        jax.jit(slope, out_shardings=shardings).lower(params).compile()
    assert "Involuntary full rematerialization" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(1, 8, 1), (1, 1, 4), (2, 2, 2)])
def test_every_mesh_gives_the_same_gradient(sizes):
    exact = gradient((1, 1, 1), "none")
    chex.assert_trees_all_close(gradient(sizes, "none"), exact, rtol=1e-4, atol=1e-4)


def test_remat_dots_computes_no_attention_again():
    """Backward over forward products of scores: none, dots and full remat."""

    def products(remat):
        model = build(read_config(LLAMA), one_device(), remat=remat)
        rows = [jnp.ones((1, 16), int)] * 4

        def loss(params):
            return model.forward(params, *rows).hidden.sum()

        with jax.set_mesh(model.mesh):
            text = str(jax.make_jaxpr(jax.grad(loss))(model.abstract))
        return text.count(" exp ")

    none, dots, full = (products(remat) for remat in ("none", "dots", "full"))
    assert none == dots < full
