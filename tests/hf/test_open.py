"""Opening a checkpoint or an adapter: the decoder, its weights and its tokenizer in one call."""

import chex
import jax
import pytest
from lib.adapters import peft_model
from lib.checkpoints import load, small_model

from jaxalign.core.sharding import make_mesh
from jaxalign.errors import UserError
from jaxalign.hf.open import open_config, open_model
from jaxalign.hf.peft import load_merged
from jaxalign.settings import Mesh

MESH = make_mesh(Mesh(), jax.devices()[:1])


def test_a_checkpoint_opens_with_its_weights_and_its_tokenizer(hf_checkpoint):
    folder = hf_checkpoint("llama-gqa")
    opened = open_model(folder, MESH, dtype="float32")
    chex.assert_trees_all_equal(opened.params, load(folder))
    assert opened.tokenizer.decode(opened.tokenizer.encode("1+12=")) == "1+12="
    assert opened.stop == (2,)


def test_the_dtype_is_the_dtype_of_weights_and_of_matrix_products(hf_checkpoint):
    opened = open_model(hf_checkpoint("llama-gqa"), MESH)
    dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(opened.params)}
    assert (dtypes, str(opened.model.dtype)) == ({"bfloat16"}, "bfloat16")


def test_an_adapter_opens_merged_into_its_base(hf_checkpoint, tmp_path):
    base = hf_checkpoint("llama-gqa")
    peft_model(base).save_pretrained(tmp_path)
    opened = open_model(tmp_path, MESH, dtype="float32")
    chex.assert_trees_all_equal(opened.params, load_merged(tmp_path, small_model(base)))
    assert opened.tokenizer.encode("12") == open_model(base, MESH).tokenizer.encode("12")


def test_an_unsupported_configuration_is_named_with_its_folder(damaged_checkpoint):
    (damaged_checkpoint / "config.json").write_text('{"model_type": "lama"}')
    with pytest.raises(UserError, match=rf"{damaged_checkpoint}/config.json: model_type 'lama'"):
        open_config(damaged_checkpoint)
