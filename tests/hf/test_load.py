import functools
import json
import shutil

import chex
import jax
import numpy as np
import pytest
from lib.checkpoints import (
    checkpoint,
    edit_json,
    in_torch,
    load,
    logits,
    plain_rows,
    small_model,
    tensors_of,
    torch_logits,
)
from safetensors.numpy import save_file

from jaxalign.errors import UserError
from jaxalign.hf import load as hf_load
from jaxalign.hf.load import (
    load_config,
    load_params,
    resolve,
    weight_files,
    weights_fingerprint,
)
from jaxalign.hf.tokenizer import tokenizer_fingerprint
from jaxalign.settings import Mesh


def edit_tensors(folder, edit):
    tensors = tensors_of(folder)
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


# Loading


@pytest.mark.parametrize("name", ["llama-gqa", "neox-parallel"])
def test_means_of_layers_equal_those_of_transformers(hf_checkpoint, name):
    folder = hf_checkpoint(name)
    theirs = in_torch(folder)
    found = []
    for layer in theirs.base_model.layers:
        layer.register_forward_hook(lambda _, inputs, out: found.append(out))
    model = small_model(folder)
    rows = plain_rows([20], 20)
    torch_logits(theirs, rows)
    given = [rows[key] for key in ("ids", "positions", "segment", "branch")]
    ours = jax.jit(functools.partial(model.forward, layers=True))(
        load_params(folder, model), *given
    ).layer_means
    outs = [out[0] if isinstance(out, tuple) else out for out in found]
    want = np.stack([out.detach().mean(-1).numpy() for out in outs], -1)
    real = rows["segment"] > 0
    assert ours.shape[-1] == len(outs) > 1
    np.testing.assert_allclose(ours[real], want[real], atol=1e-5)


def test_packed_branches_equal_separate_sequences_in_transformers(hf_checkpoint):
    folder = hf_checkpoint("neox-parallel")
    theirs = in_torch(folder)
    model = small_model(folder)
    ids = plain_rows([9], 9)["ids"]
    packed = {
        "ids": ids,
        "positions": np.array([[0, 1, 2, 3, 3, 4, 5, 6, 3]], np.int32),
        "segment": np.ones((1, 9), np.int32),
        "branch": np.array([[0, 0, 0, 1, 2, 2, 2, 2, 3]], np.int32),
    }
    ours = logits(model, load_params(folder, model), packed)[0]
    for branch in (1, 2, 3):
        at = np.isin(packed["branch"][0], (0, branch))
        alone = {"ids": ids[:, at], "segment": np.ones((1, at.sum()), np.int32)}
        np.testing.assert_allclose(ours[at], torch_logits(theirs, alone)[0], atol=1e-4)


def test_a_file_in_the_older_rope_spelling_gives_the_same_configuration(hf_checkpoint, tmp_path):
    folder = shutil.copytree(hf_checkpoint("llama-tied-llama3"), tmp_path / "older")
    raw = load_config(folder)
    scaling = raw.pop("rope_parameters")
    raw |= {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling}
    (folder / "config.json").write_text(json.dumps(raw))
    assert small_model(folder).spec == small_model(hf_checkpoint("llama-tied-llama3")).spec


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_files_are_read_exactly(hf_checkpoint, dtype):
    folder = hf_checkpoint("llama-gqa", dtype=dtype)
    params = load(folder)
    wanted = tensors_of(folder)["model.layers.1.mlp.down_proj.weight"].astype(np.float32)
    np.testing.assert_array_equal(params["layers"]["0"]["mlp"]["down"]["kernel"][1], wanted.T)


def test_parameters_are_kept_in_the_dtype_asked_for(hf_checkpoint):
    params = load(hf_checkpoint("llama-gqa"), param_dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jax.numpy.dtype("bfloat16")}


def test_a_checkpoint_in_several_files_is_one_checkpoint(hf_checkpoint, tmp_path):
    checkpoint(tmp_path, "neox-parallel", max_shard_size="20KB")
    assert len(weight_files(tmp_path)) > 2
    chex.assert_trees_all_equal(load(tmp_path), load(hf_checkpoint("neox-parallel")))


def test_a_single_file_is_read_rather_than_an_index_as_in_transformers(tmp_path):
    checkpoint(tmp_path, "qwen2-tied", max_shard_size="20KB")
    newer = {name: 2 * tensor for name, tensor in tensors_of(tmp_path).items()}
    save_file(newer, tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs = in_torch(tmp_path)
    ours = load(tmp_path)["norm"]["scale"]
    np.testing.assert_array_equal(ours, theirs.model.norm.weight.detach().numpy())
    np.testing.assert_array_equal(ours, newer["model.norm.weight"])


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 4, 2), (2, 2, 2), (1, 1, 8)])
@pytest.mark.parametrize("name", ["neox-parallel", "llama-tied-llama3"])
def test_every_mesh_holds_the_same_parameters(hf_checkpoint, name, sizes):
    data, fsdp, tensor = sizes
    sharded = load(hf_checkpoint(name), mesh=Mesh(data=data, fsdp=fsdp, tensor=tensor))
    chex.assert_trees_all_equal(jax.device_get(sharded), jax.device_get(load(hf_checkpoint(name))))


def test_shards_are_read_on_their_own(hf_checkpoint, monkeypatch):
    read = []
    whole = hf_load.read_part
    monkeypatch.setattr(
        hf_load, "read_part", lambda *args: read.append(whole(*args).shape) or whole(*args)
    )
    load(hf_checkpoint("llama-gqa"), mesh=Mesh(data=2, fsdp=4, tensor=1))
    assert read.count((8, 48)) == 2 * 2 * 4  # gate and up, two layers, four shards; no replica


def test_rotary_buffers_of_older_checkpoints_are_passed_over(damaged_checkpoint):
    expected = load(damaged_checkpoint)
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    edit_tensors(damaged_checkpoint, lambda t: t.update(buffer))
    chex.assert_trees_all_equal(load(damaged_checkpoint), expected)


def test_a_neox_head_may_have_either_name(hf_checkpoint, tmp_path):
    folder = shutil.copytree(hf_checkpoint("neox-parallel"), tmp_path / "renamed")
    edit_tensors(folder, lambda t: t.update({"lm_head.weight": t.pop("embed_out.weight")}))
    chex.assert_trees_all_equal(load(folder), load(hf_checkpoint("neox-parallel")))


def test_a_gpt2_of_the_hub_has_no_prefix_and_has_buffers(hf_checkpoint, tmp_path):
    folder = shutil.copytree(hf_checkpoint("gpt2"), tmp_path / "hub")

    def edit(tensors):
        for name in [*tensors]:
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = np.tril(np.ones((1, 1, 128, 128), np.float32))

    edit_tensors(folder, edit)
    chex.assert_trees_all_equal(load(folder), load(hf_checkpoint("gpt2")))


def test_an_old_opt_may_have_a_shorter_prefix(hf_checkpoint, tmp_path):
    folder = shutil.copytree(hf_checkpoint("opt"), tmp_path / "old")
    edit_tensors(folder, lambda t: [t.update({n.removeprefix("model."): t.pop(n)}) for n in [*t]])
    chex.assert_trees_all_equal(load(folder), load(hf_checkpoint("opt")))


def in_memory(name):
    """The name in transformers of a tensor of a model of text and images."""
    if name.startswith("language_model.model."):
        return name.replace("language_model.model.", "model.language_model.", 1)
    return "lm_head.weight" if name == "language_model.lm_head.weight" else f"model.{name}"


@pytest.mark.parametrize("name", ["gemma3-images-untied", "mistral3"])
def test_a_model_of_text_and_images_may_have_the_names_of_transformers(
    hf_checkpoint, tmp_path, name
):
    folder = shutil.copytree(hf_checkpoint(name), tmp_path / "renamed")
    edit_tensors(folder, lambda t: [t.update({in_memory(n): t.pop(n)}) for n in [*t]])
    chex.assert_trees_all_equal(load(folder), load(hf_checkpoint(name)))


def test_a_tensor_under_two_names_is_refused(hf_checkpoint, tmp_path):
    folder = shutil.copytree(hf_checkpoint("gemma3-images"), tmp_path / "twice")
    norm = "language_model.model.norm.weight"
    edit_tensors(folder, lambda t: t.update({in_memory(norm): t[norm]}))
    with pytest.raises(UserError, match=r"is also in .*, under another name; keep one of them"):
        load(folder)


def test_a_tied_head_that_is_stored_too_must_be_the_embedding(hf_checkpoint, tmp_path):
    folder = shutil.copytree(hf_checkpoint("qwen2-tied"), tmp_path / "tied")
    edit_tensors(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))
    load(folder)
    edit_tensors(folder, lambda t: t.update({"lm_head.weight": 2 * t["lm_head.weight"]}))
    with pytest.raises(UserError, match=r"'lm_head.weight' .* ties the head to the embedding"):
        load(folder)


# Damaged checkpoints


def test_a_truncated_file_is_named(damaged_checkpoint):
    file = damaged_checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(UserError, match=r"model.safetensors: not readable as safetensors"):
        load(damaged_checkpoint)


def test_a_missing_tensor_is_named(damaged_checkpoint):
    edit_tensors(damaged_checkpoint, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(UserError, match=r"tensor 'model.layers.1.mlp.up_proj.weight' is missing"):
        load(damaged_checkpoint)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: "" if name == "lm_head.weight" else name,
        lambda name: f"_orig_mod.{name}",
        lambda name: name.removeprefix("model."),
    ],
    ids=["no head", "compiled", "body alone"],
)
def test_a_checkpoint_with_other_names_of_tensors_is_refused(damaged_checkpoint, rename):
    def edit(tensors):
        for name in [*tensors]:
            tensors[rename(name)] = tensors.pop(name)
        tensors.pop("", None)

    edit_tensors(damaged_checkpoint, edit)
    with pytest.raises(UserError, match=r"tensor '\S+' is missing; .* does config.json belong"):
        load(damaged_checkpoint)


def test_an_unexpected_tensor_is_named(damaged_checkpoint):
    extra = {"model.layers.0.self_attn.q_norm.weight": np.ones(8, np.float32)}
    edit_tensors(damaged_checkpoint, lambda t: t.update(extra))
    with pytest.raises(UserError, match=r"'model.layers.0.self_attn.q_norm.weight' \(8,\) has no"):
        load(damaged_checkpoint)


def test_a_wrong_shape_is_shown_with_the_right_one(damaged_checkpoint):
    edit_json(damaged_checkpoint / "config.json", intermediate_size=56)
    with pytest.raises(UserError, match=r"got shape \(48, 32\), wanted \(56, 32\)"):
        load(damaged_checkpoint)


def test_integer_weights_are_refused(damaged_checkpoint):
    edit_tensors(
        damaged_checkpoint, lambda t: t.update({"lm_head.weight": np.ones((264, 32), np.int8)})
    )
    with pytest.raises(UserError, match=r"'lm_head.weight': got dtype I8, wanted one of F32"):
        load(damaged_checkpoint)


def test_pickled_weights_are_refused(damaged_checkpoint):
    (damaged_checkpoint / "model.safetensors").rename(damaged_checkpoint / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model.bin is a pickle, .* not read; convert it"):
        load(damaged_checkpoint)


def test_a_missing_shard_is_named(tmp_path):
    checkpoint(tmp_path, "qwen2-tied", max_shard_size="20KB")
    weight_files(tmp_path)[1].unlink()
    with pytest.raises(UserError, match=r"model-00002-of-0000\d.safetensors: missing"):
        load(tmp_path)


def test_a_folder_without_configuration_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"config.json: missing; wanted a checkpoint with .* has none"
    ):
        load_config(tmp_path)


@pytest.mark.parametrize("text, message", [("{", "not readable as JSON"), ("[]", "got list")])
def test_a_damaged_configuration_is_refused(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(tmp_path)


def test_a_path_that_is_no_folder_is_refused():
    with pytest.raises(UserError, match=r"no folder ./nowhere"):
        resolve("./nowhere")


def test_a_repository_that_the_hub_does_not_give_is_refused():
    with pytest.raises(UserError, match=r"'nobody/nothing' is neither a folder here nor"):
        resolve("nobody/nothing")


def test_a_local_folder_is_taken_as_it_is(tmp_path):
    assert resolve(str(tmp_path)) == tmp_path


# Fingerprints


def test_the_weights_fingerprint_changes_with_one_bit(damaged_checkpoint):
    before = weights_fingerprint(damaged_checkpoint)
    edit_tensors(damaged_checkpoint, lambda t: t["lm_head.weight"].view(np.uint32).__ixor__(1))
    assert weights_fingerprint(damaged_checkpoint) != before


def test_the_tokenizer_fingerprint_changes_with_the_template(damaged_checkpoint):
    before = tokenizer_fingerprint(damaged_checkpoint)
    (damaged_checkpoint / "chat_template.jinja").write_text("{{ messages }}")
    assert tokenizer_fingerprint(damaged_checkpoint) != before


def test_the_tokenizer_fingerprint_ignores_other_settings(damaged_checkpoint):
    before = tokenizer_fingerprint(damaged_checkpoint)
    file = damaged_checkpoint / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": 7}))
    assert tokenizer_fingerprint(damaged_checkpoint) == before
