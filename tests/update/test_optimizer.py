import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from lib.checkpoints import EVERY_CONFIG, SMALL
from lib.steps import one_device

from jaxalign.errors import UserError
from jaxalign.models.decoder import build
from jaxalign.models.families import read_config
from jaxalign.settings import Optimizer
from jaxalign.update.optimizer import decayed, learning_rate, optimizer

PARAMS = {"q": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "norm": {"scale": jnp.ones(2)}}
GRADS = {
    "q": {"kernel": jnp.full((2, 2), 0.3), "bias": jnp.full(2, -0.2)},
    "norm": {"scale": jnp.full(2, 0.1)},
}


def test_warmup_wastes_no_update_and_peaks_at_its_last():
    rate = learning_rate(Optimizer(learning_rate=1.0, warmup=4, schedule="constant"), 10)
    np.testing.assert_allclose([rate(i) for i in range(6)], [0.25, 0.5, 0.75, 1, 1, 1], rtol=1e-6)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_decay_reaches_its_final_fraction_one_update_after_the_last(schedule):
    rate = learning_rate(Optimizer(learning_rate=2.0, schedule=schedule, final=0.1, warmup=2), 12)
    np.testing.assert_allclose([rate(2), rate(12)], [2.0, 0.2], rtol=1e-6)
    assert rate(11) > 0.2


def test_biases_and_norms_are_not_decayed():
    assert decayed(PARAMS) == {"q": {"kernel": True, "bias": False}, "norm": {"scale": False}}


@pytest.mark.parametrize("name", ["gpt_oss", "glm4_moe", "qwen3_5", "opt", "stablelm"])
def test_no_vector_of_a_decoder_is_decayed(name):
    raw = {k: v for k, v in (SMALL | EVERY_CONFIG[name]).items() if k != "since"}
    params = flatten_dict(build(read_config(raw), one_device()).abstract)
    for path, is_decayed in flatten_dict(decayed(unflatten_dict(params))).items():
        stacked = path[0] == "layers"
        assert params[path].ndim > 1 + stacked or not is_decayed, path


def test_adamw_equals_the_textbook_update():
    settings = Optimizer(
        learning_rate=0.1, schedule="constant", weight_decay=0.5, b1=0.8, b2=0.9, eps=1e-3,
        clip_norm=None,
    )  # fmt: skip
    tx = optimizer(settings, 10)
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    # After bias correction the first update is g / (|g| + eps), whatever the decays are.
    np.testing.assert_allclose(updates["q"]["kernel"], -0.1 * (0.3 / 0.301 + 0.5), rtol=1e-5)
    np.testing.assert_allclose(updates["q"]["bias"], 0.1 * 0.2 / 0.201, rtol=1e-5)


def test_clipping_is_by_the_global_norm():
    tx = optimizer(Optimizer(name="sgd", learning_rate=1.0, schedule="constant", clip_norm=0.1), 1)
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    norm = np.sqrt(4 * 0.3**2 + 2 * 0.2**2 + 2 * 0.1**2)
    np.testing.assert_allclose(updates["q"]["kernel"], -0.3 * 0.1 / norm, rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor"])
def test_decay_is_the_learning_rate_times_the_weight(name):
    def kernel(weight_decay):
        settings = Optimizer(
            name=name, learning_rate=0.1, schedule="constant", weight_decay=weight_decay
        )
        tx = optimizer(settings, 10)
        updates = tx.update(GRADS, tx.init(PARAMS), PARAMS)[0]
        assert bool((updates["norm"]["scale"] != 0).all())
        return updates["q"]["kernel"]

    np.testing.assert_allclose(kernel(0.5) - kernel(0.0), -0.1 * 0.5, rtol=1e-5)


def test_lion_equals_the_textbook_update():
    tx = optimizer(
        Optimizer(name="lion", learning_rate=0.1, schedule="constant", b1=0.5, b2=0.9), 9
    )
    first, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    np.testing.assert_allclose(first["q"]["kernel"], -0.1, rtol=1e-6)
    # What is left of the first gradient is a tenth, and an eighth the other way outweighs it.
    turned = jax.tree.map(lambda g: -g / 8, GRADS)
    second, _ = tx.update(turned, state, PARAMS)
    np.testing.assert_allclose(second["q"]["kernel"], 0.1, rtol=1e-6)


def test_adafactor_divides_by_the_root_of_its_factored_second_moment():
    shape = (128, 256)
    grads = {"kernel": jnp.outer(jnp.linspace(1, 2, 128), jnp.linspace(1, 3, 256))}
    params = {"kernel": jnp.ones(shape)}
    settings = Optimizer(name="adafactor", learning_rate=0.1, schedule="constant", clip_norm=None)
    tx = optimizer(settings, 10)
    updates, _ = tx.update(grads, tx.init(params), params)
    # An outer product is its own factorisation, so the first update is the gradient's sign.
    np.testing.assert_allclose(updates["kernel"], np.full(shape, -0.1), rtol=1e-4)


ROWS, COLUMNS = 256, 512
MATRIX = ROWS * COLUMNS


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"name": "adamw"}, 8 * MATRIX),
        ({"name": "adamw", "moment_dtype": "bfloat16"}, 6 * MATRIX),
        ({"name": "lion"}, 4 * MATRIX),
        ({"name": "lion", "moment_dtype": "bfloat16"}, 2 * MATRIX),
        ({"name": "adafactor"}, 4 * (ROWS + COLUMNS + 1)),  # one number stands for no moment
        ({"name": "sgd"}, 0),
        ({"name": "sgd", "b1": 0.9}, 4 * MATRIX),
    ],
    ids=str,
)
def test_the_state_of_a_matrix_has_the_bytes_that_its_moments_take(settings, wanted):
    tx = optimizer(Optimizer(**settings), 10)
    params = {"kernel": jax.ShapeDtypeStruct((ROWS, COLUMNS), jnp.float32)}
    leaves = jax.tree.leaves(jax.eval_shape(tx.init, params))
    assert sum(x.size * x.dtype.itemsize for x in leaves if x.ndim) == wanted


def test_a_moment_keeps_its_dtype_and_the_second_that_of_the_parameters():
    tx = optimizer(Optimizer(moment_dtype="bfloat16"), 10)
    _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    dtypes = [x.dtype for x in jax.tree.leaves(state) if x.ndim]
    assert dtypes.count(jnp.bfloat16) == dtypes.count(jnp.float32) == 3


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor", "sgd"])
def test_every_rule_moves_parameters_against_the_gradient(name):
    tx = optimizer(Optimizer(name=name, learning_rate=0.01), 10)
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    assert bool((updates["q"]["kernel"] < 0).all())
    assert bool((updates["q"]["bias"] > 0).all())


def test_a_value_the_rule_does_not_read_is_refused():
    with pytest.raises(UserError, match=r"optimizer.eps: lion does not read it"):
        optimizer(Optimizer(name="lion", eps=1e-8), 10)


@pytest.mark.parametrize("name", ["adafactor", "sgd"])
def test_a_moment_dtype_without_such_a_moment_is_refused(name):
    with pytest.raises(UserError, match=rf"optimizer.moment_dtype: {name} does not read it"):
        optimizer(Optimizer(name=name, moment_dtype="bfloat16"), 10)


def test_a_warmup_longer_than_the_stage_is_refused():
    with pytest.raises(UserError, match=r"warmup: 11 updates of warm-up in a stage of 10"):
        optimizer(Optimizer(warmup=11), 10)
