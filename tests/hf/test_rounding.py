"""The share of a change of the weights that an export keeps."""

import jax
import numpy as np
import pytest
from lib.adapters import adapted, randomized
from lib.checkpoints import load, small_model, tensors_of
from lib.steps import one_device

from jaxalign.hf.load import load_params
from jaxalign.hf.reward import new_head
from jaxalign.hf.rounding import rounding
from jaxalign.hf.save import save_checkpoint
from jaxalign.models.adapted import materialized
from jaxalign.run.stage import describe_model
from jaxalign.settings import Lora, Mesh, Model

pytestmark = pytest.mark.slow


def changed(params, size):
    """Parameters with a random change of this size, relative to each weight."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x * (1 + size * rng.normal(size=x.shape)).astype(x.dtype), params)


def by_files(params, model, source, folder):
    """The share, by the files of an export in bfloat16 and of one in float32."""
    found = []
    for dtype in ("bfloat16", "float32"):
        save_checkpoint(folder / dtype, params, model, source=source, dtype=dtype, card="")
        after, before = tensors_of(folder / dtype), tensors_of(source)
        changes = [after[k].astype("f8") - before[k].astype("f8") for k in after]
        found.append(np.concatenate([change.ravel() for change in changes]))
    kept, change = found
    return kept @ change / (change @ change)


@pytest.mark.parametrize("name", ["neox-parallel", "qwen2-tied"])
@pytest.mark.parametrize("size", [1e-4, 1e-2])
def test_the_share_is_that_of_the_files(hf_checkpoint, tmp_path, name, size):
    source = hf_checkpoint(name, dtype="bfloat16")
    model = small_model(source, mesh=Mesh(data=2, fsdp=2, tensor=2))
    params = changed(load_params(source, model), size)
    found = rounding(params, model, source=source)
    assert found.kept == pytest.approx(by_files(params, model, source, tmp_path), rel=1e-3)
    assert found.kept < 0.1 if size == 1e-4 else found.kept > 0.9


def test_the_share_of_merged_adapters_is_that_of_their_matrices(hf_checkpoint):
    source = hf_checkpoint("llama-gqa", dtype="bfloat16")
    lora = adapted(source, Lora(rank=4))
    merged = lora.merged(load(source), randomized(lora, 0.01))
    whole = rounding(materialized(merged, lora.base), lora.base, source=source)
    assert rounding(merged, lora.base, source=source) == pytest.approx(whole)


def test_weights_of_a_float32_checkpoint_keep_a_small_change_on_the_average(hf_checkpoint):
    source = hf_checkpoint("llama-gqa")
    model = small_model(source)
    params = jax.tree.map(lambda x: x + 1e-4, load_params(source, model))
    assert rounding(params, model, source=source, dtype="bfloat16").kept == pytest.approx(
        1, abs=0.2
    )


def test_a_new_reward_head_is_not_counted(hf_checkpoint):
    source = hf_checkpoint("llama-gqa", dtype="bfloat16")
    model = describe_model(source, Model(path="", dtype="float32"), one_device(), scores=1)
    head = new_head(source, model, jax.random.key(0))
    assert rounding(load_params(source, model, made=head), model, source=source) is None


def test_nothing_is_said_where_the_dtype_holds_every_weight(hf_checkpoint):
    source = hf_checkpoint("llama-gqa", dtype="bfloat16")
    model = small_model(source)
    params = changed(load_params(source, model), 1e-4)
    assert rounding(params, model, source=source, dtype="float32") is None


def test_nothing_is_said_of_weights_that_have_not_changed(hf_checkpoint):
    source = hf_checkpoint("llama-gqa", dtype="bfloat16")
    assert rounding(load(source), small_model(source), source=source) is None
