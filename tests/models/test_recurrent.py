"""Decoders with recurrent layers: meshes, remat, sequences of several chunks, configurations."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from lib.checkpoints import (
    CONFIGS,
    EVERY_CONFIG,
    SMALL,
    in_torch,
    load,
    logits,
    plain_rows,
    small_model,
    tensors_of,
    torch_logits,
)
from lib.steps import one_device
from safetensors.numpy import save_file

from jaxalign.collect.decode import generate
from jaxalign.core.sharding import make_mesh
from jaxalign.errors import UserError
from jaxalign.models.decoder import build
from jaxalign.models.families import read_config
from jaxalign.settings import Mesh

QWEN = SMALL | EVERY_CONFIG["qwen3_5"]
LFM = SMALL | EVERY_CONFIG["lfm2"]
RAW = {"qwen3_5": QWEN, "lfm2": LFM}
ROWS = plain_rows([9, 9, 5, 9, 9, 1, 9, 2], 9)
known = pytest.mark.skipif("qwen3_5" not in CONFIGS, reason="transformers is older than it")


@functools.cache
def gradient(name, sizes=(1, 1, 1), remat="none"):
    """The gradient of the squared logits of eight rows, on a mesh."""
    data, fsdp, tensor = sizes
    devices = jax.devices()[: data * fsdp * tensor]
    mesh = make_mesh(Mesh(data=data, fsdp=fsdp, tensor=tensor), devices)
    spec = read_config(RAW[name])
    host = jax.device_get(build(spec, one_device()).init(jax.random.key(0)))
    model = build(spec, mesh, remat=remat)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, model.abstract)

    def loss(params):
        encoded = model.forward(params, *ROWS.values())
        return jnp.square(
            encoded.head.logits(encoded.hidden) * (ROWS["segment"] > 0)[..., None]
        ).sum()

    with jax.set_mesh(mesh):
        slope = jax.jit(jax.grad(loss), out_shardings=shardings)
        return jax.device_get(slope(jax.device_put(host, shardings)))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(1, 1, 2), (2, 2, 2)])
@pytest.mark.parametrize("name", RAW)
def test_every_mesh_gives_the_same_gradient(capfd, name, sizes):
    exact = gradient(name)
    capfd.readouterr()
    chex.assert_trees_all_close(gradient(name, sizes), exact, rtol=1e-4, atol=1e-4)
    assert "Involuntary full rematerialization" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_does_not_change_gradients(remat):
    exact = gradient("qwen3_5")
    chex.assert_trees_all_close(gradient("qwen3_5", remat=remat), exact, rtol=1e-5, atol=1e-5)


@known
def test_sequences_of_several_chunks_have_the_logits_of_transformers(hf_checkpoint):
    folder = hf_checkpoint("qwen3_5")
    rows = plain_rows([127, 65], 127)
    ours = logits(small_model(folder), load(folder), rows)
    real = rows["segment"] > 0
    np.testing.assert_allclose(ours[real], torch_logits(in_torch(folder), rows)[real], atol=1e-4)


@known
def test_answers_to_prompts_of_several_chunks_are_those_of_transformers(hf_checkpoint):
    folder = hf_checkpoint("qwen3_5")
    theirs = in_torch(folder)
    prompts = [np.random.default_rng(n).integers(4, 264, n).astype(np.int32) for n in (65, 85, 7)]
    ours = generate(small_model(folder), load(folder), prompts, max_new=40, temperature=0, stop=[])
    for prompt, tokens in zip(prompts, (a.tokens for a in ours), strict=True):
        given = torch.tensor(prompt[None]).long()
        wanted = theirs.generate(
            given, max_new_tokens=40, min_new_tokens=40, do_sample=False, pad_token_id=0,
            eos_token_id=None,
        )  # fmt: skip
        np.testing.assert_array_equal(tokens, wanted[0, len(prompt) :].numpy())


@known
def test_layers_that_predict_further_tokens_are_left_out(hf_checkpoint, tmp_path):
    folder = hf_checkpoint("qwen3_5")
    tensors = tensors_of(folder) | {"mtp.fc.weight": np.ones((2, 2), np.float32)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    chex.assert_trees_all_equal(small_params(tmp_path, folder), load(folder))


def small_params(weights, folder):
    """The parameters in `weights` for the decoder of `folder`."""
    (weights / "config.json").write_text((folder / "config.json").read_text())
    return load(weights)


def test_keys_that_transformers_does_not_read_change_nothing():
    more = {"mtp_num_hidden_layers": 1, "mamba_ssm_dtype": "float32", "attn_output_gate": True}
    assert read_config(QWEN | more) == read_config(QWEN)


def test_every_fourth_layer_has_softmax_attention():
    assert read_config(QWEN) == read_config(QWEN | {"full_attention_interval": 4})
    kinds = ["linear_attention"] * 3 + ["full_attention", "linear_attention"]
    assert read_config(QWEN) == read_config(QWEN | {"layer_types": kinds})


def test_older_keys_of_lfm2_give_one_configuration():
    raw = {k: v for k, v in LFM.items() if k not in ("layer_types", "intermediate_size")}
    older = {"full_attn_idxs": [2, 4], "block_ff_dim": 48, "tie_embedding": True, "theta": 5.0}
    assert read_config(raw | older) == read_config(LFM)


REFUSED = {
    "value heads": (
        QWEN | {"linear_num_value_heads": 3},
        "linear_num_value_heads 3 is not a multiple of linear_num_key_heads 2",
    ),
    "kind of layer": (
        QWEN | {"layer_types": ["conv"] * 5},
        "'conv' is not implemented .* wanted full_attention or linear_attention",
    ),
}


@pytest.mark.parametrize("raw, message", REFUSED.values(), ids=REFUSED)
def test_what_is_not_implemented_is_refused_by_name(raw, message):
    with pytest.raises(UserError, match=message):
        read_config(raw)
