"""Adapters of a frozen model: the same mathematics, and nothing else is trained."""

import functools

import chex
import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lib import steps as helpers_step
from lib.adapters import randomized
from lib.checkpoints import CONFIGS, SMALL
from lib.steps import MESHES, B, assert_same, batch_of, dense_loss, one_device, some_examples

from jaxalign.core import layouts
from jaxalign.core.sharding import batch_shards, make_mesh, put_batch
from jaxalign.errors import UserError
from jaxalign.hf.peft import low_rank
from jaxalign.models.adapted import adapt
from jaxalign.models.decoder import build
from jaxalign.models.families import read_config
from jaxalign.objectives import OBJECTIVES
from jaxalign.run.evaluate import evaluator
from jaxalign.settings import Lora
from jaxalign.update.forward import Task, sequence_stats
from jaxalign.update.gradient import value_and_grad
from jaxalign.update.state import abstract_state, initial_state
from jaxalign.update.step import Fixed, train_step

NEOX = {
    "model_type": "gpt_neox",
    "vocab_size": helpers_step.VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
# The feed-forward width is no length of a row, so that the shapes of weights are theirs alone.
FAMILIES = {"llama": helpers_step.LLAMA | {"intermediate_size": 48}, "gpt_neox": NEOX}
SOME = ["llama", pytest.param("gpt_neox", marks=pytest.mark.slow)]
SETTINGS = Lora(rank=4, alpha=6)


def adapted_model(family="llama", mesh=None, settings=SETTINGS, **options):
    model = build(read_config(FAMILIES[family]), mesh or one_device(), **options)
    return adapt(model, low_rank(settings, model.spec, "lora"))


def weights(model):
    """Frozen parameters, and adapters whose B is not zero."""
    # Large enough: the gradient of a key is what little is left of terms that cancel.
    return helpers_step.parameters(model.base), randomized(model, 0.3)


def dense_merge(family, frozen, adapters):
    """W + alpha / rank A B, matrix by matrix, written out."""
    merged = jax.tree.map(lambda x: x, frozen)
    scale = SETTINGS.alpha / SETTINGS.rank
    for block, layer in adapters["layers"]["0"].items():
        for name, low in layer.items():
            if name == "lora_a":
                continue
            a = (
                low["lora_a"]
                if family == "llama" or name not in "query key value"
                else layer["lora_a"]
            )
            product = jnp.einsum("lir,lro->lio", a, low["lora_b"])
            kernel = merged["layers"]["0"][block][name]["kernel"]
            merged["layers"]["0"][block][name]["kernel"] = kernel + scale * product
    return merged


@functools.cache
def dense(name, family):
    """The loss and its gradient by the adapters, through matrices that are added up."""
    objective = OBJECTIVES[name]
    model = adapted_model(family)
    frozen, adapters = weights(model)
    items = some_examples(objective.layout, B)
    state = objective.init_state() if objective.init_state else None

    def loss(adapters):
        params = dense_merge(family, frozen, adapters)
        return dense_loss(objective, {}, model.base, params, frozen, items, state)

    with jax.set_mesh(model.mesh):
        return jax.tree.map(np.asarray, jax.jit(jax.value_and_grad(loss))(adapters))


def gradient(name, family="llama", *, mesh=None, n=1, remat="none", cached=False):
    """The same through the training step's own parts, with the base as the live reference."""
    objective = OBJECTIVES[name]
    mesh = mesh or one_device()
    items = some_examples(objective.layout, B)
    with jax.set_mesh(mesh):
        model = adapted_model(family, mesh, remat=remat)
        frozen, adapters = weights(model)
        task = Task(objective, {}, model.forward, trains_head=False)
        batch = batch_of(items, n, batch_shards(mesh))
        if cached:
            cells = jax.tree.map(lambda x: x[0], put_batch(batch, mesh))
            base = Task(objective, {}, model.base.forward)
            ref = jax.jit(lambda p, c: sequence_stats(base, p, c).token)(frozen, cells)
            batch = batch._replace(ref={k: np.asarray(v)[None] for k, v in ref.items()})
        state = objective.init_state() if objective.init_state else None
        run = jax.jit(
            lambda p, r, b, f: value_and_grad(task.with_base(f), p, b, state=state, ref_params=r)
        )
        live = None if cached or not objective.uses_ref else {}
        found = run(adapters, live, put_batch(batch, mesh), frozen)
    return jax.tree.map(np.asarray, (found.loss, found.grads))


@pytest.mark.parametrize("family", SOME)
@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_the_gradient_is_that_of_the_dense_mathematics(family, n):
    assert_same(gradient("dpo", family, n=n), dense("dpo", family))


@pytest.mark.parametrize("family", SOME)
def test_layers_are_read_of_the_base(family):
    assert_same(gradient("sparse_po", family, n=2), dense("sparse_po", family))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "slpo", "kto"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_of_every_kind_is_that_of_the_dense_mathematics(name, family):
    assert_same(gradient(name, family, n=2), dense(name, family))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "axes", [pytest.param(a, marks=() if a == "mixed" else pytest.mark.slow) for a in MESHES]
)
def test_eight_devices_give_the_dense_gradient(family, axes):
    assert_same(gradient("dpo", family, mesh=make_mesh(MESHES[axes])), dense("dpo", family))


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_does_not_change_the_gradient(remat):
    assert_same(gradient("dpo", remat=remat), dense("dpo", "llama"))


def test_a_cached_reference_gives_the_gradient_of_adapters_switched_off():
    assert_same(gradient("dpo", cached=True), dense("dpo", "llama"))


@pytest.mark.parametrize("family", FAMILIES)
def test_new_adapters_give_the_bits_of_the_base(family):
    model = adapted_model(family)
    frozen, fresh = helpers_step.parameters(model.base), model.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    ids = rng.integers(0, helpers_step.VOCAB, (2, 16))
    rows = (ids, np.broadcast_to(np.arange(16), ids.shape), np.ones_like(ids), np.zeros_like(ids))
    with jax.set_mesh(model.mesh):
        run = jax.jit(model.forward)
        got = [run(frozen, adapters, *rows)[0] for adapters in (fresh, {})]
        changed = run(frozen, randomized(model), *rows)[0]
    np.testing.assert_array_equal(*got)
    assert not np.allclose(changed, got[0])


def test_a_begins_as_in_peft_and_b_at_zero():
    fresh = adapted_model().init(jax.random.key(0))
    for path, leaf in jax.tree_util.tree_leaves_with_path(fresh):
        assert leaf.dtype == jnp.float32
        if path[-1].key == "lora_b":
            assert not leaf.any()
            continue
        bound = leaf.shape[1] ** -0.5
        assert 0.9 * bound < np.abs(leaf).max() <= bound
        np.testing.assert_allclose(np.std(leaf), bound / 3**0.5, rtol=0.1)
        assert not np.array_equal(leaf[0], leaf[1])


def test_new_adapters_are_the_same_on_every_mesh():
    one = adapted_model().init(jax.random.key(0))
    mixed = adapted_model(mesh=make_mesh(MESHES["mixed"])).init(jax.random.key(0))
    chex.assert_trees_all_equal(*(jax.tree.map(np.asarray, tree) for tree in (one, mixed)))


def trained(model, *, frozen=None, steps=3):
    """A few updates of DPO; the last state, the losses, and the frozen parameters after them."""
    objective, mesh = OBJECTIVES["dpo"], model.mesh
    items = some_examples(layouts.PAIRS, B)
    tx = optax.adamw(1e-2)
    task = Task(objective, {}, model.forward, trains_head=False)
    abstract = abstract_state(model, tx, [task])
    with jax.set_mesh(mesh):
        frozen = helpers_step.parameters(model.base) if frozen is None else frozen
        state = initial_state(model.init(jax.random.key(0)), [task], tx, abstract)

        @functools.partial(jax.jit, donate_argnums=0)
        def update(state, batch, frozen):
            return train_step([task], tx, state, [batch], Fixed(frozen, {}))

        losses = []
        for _ in range(steps):
            state, out = update(
                state, put_batch(batch_of(items, 2, batch_shards(mesh)), mesh), frozen
            )
            losses.append(float(out.loss))
    return state, losses, frozen


def test_updates_lower_the_loss_and_leave_the_base_as_it_is():
    model = adapted_model()
    before = jax.tree.map(np.array, helpers_step.parameters(model.base))
    state, losses, frozen = trained(model)
    np.testing.assert_allclose(losses[0], np.log(2), rtol=1e-6)
    assert losses == sorted(losses, reverse=True)
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, frozen), before)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(state.params))


def test_a_base_in_bfloat16_has_adapters_and_moments_in_float32():
    model = adapted_model(dtype="bfloat16", param_dtype="bfloat16")
    frozen = jax.tree.map(lambda x: x.astype("bfloat16"), helpers_step.parameters(model.base))
    state, losses, _ = trained(model, frozen=frozen)
    kinds = {leaf.dtype.name for leaf in jax.tree.leaves((state.params, state.opt_state))}
    assert kinds == {"float32", "int32"}
    assert losses == sorted(losses, reverse=True)


def outputs(jaxpr):
    """Shapes of what every equation makes, inside loops and branches too."""
    for eqn in jaxpr.eqns:
        yield from ((eqn.primitive.name, v.aval.shape) for v in eqn.outvars)
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            yield from outputs(inner)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_no_gradient_of_the_base_is_formed(remat):
    model = adapted_model(remat=remat)
    frozen, adapters = weights(model)
    batch = batch_of(some_examples(layouts.PAIRS, B), 2)
    big = {leaf.shape[1:] for leaf in jax.tree.leaves(frozen["layers"]) if leaf.ndim == 3}
    big |= {shape[::-1] for shape in big}
    big |= {(len(model.base.spec.layers), *shape) for shape in big}
    big |= {frozen["embed"].shape, frozen["head"]["kernel"].shape}

    def formed(task, params, ref_params):
        run = functools.partial(value_and_grad, task, ref_params=ref_params)
        with jax.set_mesh(model.mesh):
            found = set(outputs(jax.make_jaxpr(run)(params, batch).jaxpr))
        return {(p, s) for p, s in found if p in ("dot_general", "scan", "while") and s in big}

    task = Task(OBJECTIVES["dpo"], {}, model.forward, trains_head=False)
    ours = task.with_base(frozen)
    assert formed(ours, adapters, {}) == set()
    assert formed(Task(OBJECTIVES["dpo"], {}, model.base.forward), frozen, frozen) != set()


def test_evaluation_takes_the_base_as_an_argument():
    model = adapted_model()
    frozen, adapters = weights(model)
    task = Task(OBJECTIVES["dpo"], {}, model.forward, trains_head=False)
    batches = [batch_of(some_examples(layouts.PAIRS, B))]
    with jax.set_mesh(model.mesh):
        loss = evaluator(task, model.mesh, Fixed(frozen, {}))(adapters, None, batches)["loss"]
    assert loss == pytest.approx(float(dense("dpo", "llama")[0]), rel=1e-5)


@pytest.mark.parametrize(
    "family, targets, wanted",
    [
        ("llama", None, "query key value out gate up down"),
        ("llama", ("q_proj", "value", "down_proj"), "query value down"),
        ("gpt_neox", None, "query key value out up down"),
        ("gpt_neox", ("query_key_value",), "query key value"),
        ("gpt_neox", ("dense", "query", "key", "value"), "query key value out"),
    ],
)
def test_targets_are_named_as_here_or_as_in_peft(family, targets, wanted):
    config = read_config(FAMILIES[family])
    found = low_rank(Lora(targets=targets), config, "lora").targets
    assert [name for _, name in found] == wanted.split()


@pytest.mark.parametrize(
    "family, targets, message",
    [
        ("llama", ("qproj",), "stages.dpo.lora.targets: .*'qproj'; did you mean 'q_proj'"),
        ("llama", ("query_key_value",), "no linear layer 'query_key_value'"),
        ("gpt_neox", ("query",), "fuses query, key, value .* key is not named; name query_key"),
        ("gpt_neox", ("gate",), "has no linear layer 'gate'"),
        ("qwen3_moe", ("up_proj",), "only attention can have adapters, not 'up_proj'"),
        ("deepseek_v3", ("q_proj",), "has no linear layer 'q_proj'; did you mean 'q_[ab]_proj'"),
    ],
)
def test_targets_that_are_not_there_are_refused(family, targets, message):
    config = read_config(FAMILIES.get(family) or SMALL | CONFIGS[family])
    with pytest.raises(UserError, match=message):
        low_rank(Lora(targets=targets), config, "stages.dpo.lora")


@pytest.mark.parametrize("stabilized, wanted", [(False, 6 / 4), (True, 6 / 2)])
def test_the_scale_is_alpha_over_the_rank_or_its_root(stabilized, wanted):
    settings = Lora(rank=4, alpha=6, rank_stabilized=stabilized)
    config = read_config(NEOX)
    assert low_rank(settings, config, "lora").scale == wanted
