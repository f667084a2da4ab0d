"""Weights that stay on the devices have the bits of their folder."""

import chex
import jax
import pytest
from lib.checkpoints import ONE_PER_FAMILY, small_model

from jaxalign.hf.kept import Kept
from jaxalign.hf.load import load_params
from jaxalign.hf.open import open_model
from jaxalign.hf.rounding import lossy
from jaxalign.hf.save import save_checkpoint
from jaxalign.settings import Mesh

CARD = "# A model card\n"


def kept_and_folder(source, out, *, mesh=None, export=None, **dtypes):
    """Weights that no export holds exactly, exported and kept."""
    model = small_model(source, mesh=mesh, **dtypes)
    # With subnormal numbers of float16.
    params = jax.tree.map(lambda x: x * 1.2345e-4, load_params(source, model))
    save_checkpoint(out, params, model, source=source, dtype=export, card=CARD)
    kept = Kept()
    kept.keep(out, params, model, lossy(model, source=source, dtype=export))
    return kept, model


@pytest.mark.parametrize("export", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mesh", [None, Mesh(data=2, fsdp=2, tensor=2)])
def test_every_reader_gets_the_bits_of_the_folder(
    hf_checkpoint, tmp_path, export, param_dtype, mesh
):
    source, out = hf_checkpoint("llama-gqa"), tmp_path / "out"
    kept, model = kept_and_folder(source, out, mesh=mesh, export=export, param_dtype=param_dtype)
    for reader in (model, small_model(source, mesh=mesh, dtype="bfloat16", param_dtype="bfloat16")):
        ours, theirs = kept.of(out, reader), load_params(out, reader)
        chex.assert_trees_all_equal(ours, theirs)
        chex.assert_trees_all_equal_dtypes(ours, theirs)


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_each_family_gets_the_bits_of_the_folder(hf_checkpoint, tmp_path, name):
    kept, model = kept_and_folder(hf_checkpoint(name), tmp_path / "out", export="bfloat16")
    out = tmp_path / "out"
    chex.assert_trees_all_equal(kept.of(out, model), load_params(out, model))


def test_an_opened_model_reads_no_weights_of_a_folder_that_is_kept(hf_checkpoint, tmp_path):
    out = tmp_path / "out"
    kept, model = kept_and_folder(hf_checkpoint("llama-gqa"), out)
    read = open_model(out, model.mesh, dtype="float32")
    (out / "model.safetensors").unlink()
    opened = open_model(out, model.mesh, dtype="float32", kept=kept)
    chex.assert_trees_all_equal(opened.params, read.params)


def test_weights_of_another_folder_shape_or_mesh_are_not_given(hf_checkpoint, tmp_path):
    source, out = hf_checkpoint("llama-gqa"), tmp_path / "out"
    kept, model = kept_and_folder(source, out)
    assert kept.of(source, model) is None
    assert kept.of(out, small_model(source, mesh=Mesh(data=2, fsdp=2, tensor=2))) is None
    other = small_model(hf_checkpoint("qwen2-untied"))
    assert kept.of(out, other) is None
    kept.drop()
    assert kept.of(out, model) is None


def test_nothing_is_kept_at_first(hf_checkpoint):
    folder = hf_checkpoint("llama-gqa")
    assert Kept().of(folder, small_model(folder)) is None
