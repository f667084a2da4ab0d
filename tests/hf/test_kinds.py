"""Folders that are no checkpoint of this library are named for what they are."""

import json
import shutil

import pytest
from lib.steps import one_device

from jaxalign.errors import UserError
from jaxalign.hf.load import load_config, load_params, resolve, weight_files
from jaxalign.hf.tokenizer import load_tokenizer, stop_tokens, tokenizer_fingerprint
from jaxalign.run.stage import describe_model
from jaxalign.settings import Model

ODD = (None, 5, "x", [], {}, [None], float("inf"), -1, "a" * 1_000_000, 2**63, True, [5], {"x": 1})
"""Values that a key seldom has."""


def load(folder):
    model = describe_model(folder, Model(path=str(folder), dtype="float32"), one_device())
    return load_params(folder, model)


def read_tokens(folder):
    tokenizer = load_tokenizer(folder)
    tokenizer_fingerprint(folder)
    return stop_tokens(folder, tokenizer)


def refusal(read, folder):
    """What a `UserError` says; None if there is none."""
    try:
        read(folder)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("read", [load_config, load_tokenizer, weight_files])
@pytest.mark.parametrize(
    "name, message",
    [
        (
            "adapter_config.json",
            r"is an adapter without its base model; merge it.*merge_and_unload",
        ),
        ("model-q4.gguf", r"model-q4\.gguf is GGUF, .* give the checkpoint that it was made from"),
        ("pytorch_model.bin", r"is a pickle, .* convert it.*save_pretrained"),
        ("model.pt", r"model\.pt is a pickle"),
        ("notes.txt", r"wanted a checkpoint with config\.json.* has 'notes\.txt'; download"),
    ],
)
def test_another_kind_of_folder_is_named(tmp_path, read, name, message):
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=message):
        read(tmp_path)


@pytest.mark.parametrize(
    "name, message", [("m.gguf", "a file; m.gguf is GGUF"), ("model.safetensors", "the folder of")]
)
def test_a_file_as_the_path_of_a_model_is_named(tmp_path, name, message):
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=rf"model\.path: .*{name} is .*{message}"):
        resolve(str(tmp_path / name))


def test_a_long_path_of_a_model_is_refused():
    with pytest.raises(UserError, match=r"model\.path: got a path of 9,999,999 characters"):
        resolve("a" * 9_999_999)


def test_a_pointer_of_git_lfs_is_no_damaged_file(damaged_checkpoint):
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
        (damaged_checkpoint / name).write_text(pointer)
        with pytest.raises(UserError, match=rf"{name}: a pointer of Git LFS.*git lfs pull"):
            load_tokenizer(damaged_checkpoint) if "tok" in name else load(damaged_checkpoint)


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize("odd", [*ODD, {"a": None}, {"a": 5}, {"a": []}, {"a": ""}, {"a": "/"}])
def test_an_index_of_another_form_is_refused(damaged_checkpoint, odd):
    (damaged_checkpoint / "model.safetensors").unlink()
    (damaged_checkpoint / INDEX).write_text(json.dumps({"weight_map": odd}))
    with pytest.raises(UserError, match=INDEX):
        weight_files(damaged_checkpoint)


def test_a_tensor_in_two_files_is_refused(damaged_checkpoint):
    files = [damaged_checkpoint / f"{name}.safetensors" for name in "ab"]
    (damaged_checkpoint / "model.safetensors").rename(files[0])
    shutil.copy(*files)
    names = {"a": "a.safetensors", "b": "b.safetensors"}
    (damaged_checkpoint / INDEX).write_text(json.dumps({"weight_map": names}))
    with pytest.raises(UserError, match=r"b\.safetensors: tensor '.*' is also in .*a\.safetensors"):
        load(damaged_checkpoint)


@pytest.mark.parametrize("key", ["architectures", "model_type", "hidden_size", "rope_theta"])
def test_an_odd_value_in_config_json_is_read_or_refused(damaged_checkpoint, key):
    config = load_config(damaged_checkpoint)
    for odd in ODD:
        (damaged_checkpoint / "config.json").write_text(json.dumps(config | {key: odd}))
        said = refusal(load, damaged_checkpoint)
        assert said is None or "config.json" in said


@pytest.mark.parametrize(
    "odd", [["x"], "x", {}, [[1]], -1, 1.5, True, 2**40, [None]], ids=lambda x: json.dumps(x)
)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_stop_token_that_is_no_id_is_refused(damaged_checkpoint, name, odd):
    held = load_config(damaged_checkpoint) if name == "config.json" else {}
    (damaged_checkpoint / name).write_text(json.dumps(held | {"eos_token_id": odd}))
    tokenizer = load_tokenizer(damaged_checkpoint)
    with pytest.raises(UserError, match=rf"{name}: eos_token_id: got .* wanted the id of a token"):
        stop_tokens(damaged_checkpoint, tokenizer)


@pytest.mark.parametrize(
    "key", ["model_max_length", "chat_template", "eos_token", "added_tokens_decoder"]
)
def test_an_odd_value_in_tokenizer_config_json_is_read_or_refused(damaged_checkpoint, key):
    file = damaged_checkpoint / "tokenizer_config.json"
    config = json.loads(file.read_text())
    for odd in ODD:
        file.write_text(json.dumps(config | {key: odd}))
        said = refusal(read_tokens, damaged_checkpoint)
        assert said is None or "tokenizer" in said
