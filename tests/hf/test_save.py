import shutil

import jax
import numpy as np
import pytest
import torch
import transformers
from lib.checkpoints import (
    ONE_PER_FAMILY,
    in_torch,
    plain_rows,
    small_model,
    tensors_of,
    torch_logits,
)

from jaxalign.errors import RunError, UserError
from jaxalign.hf import save as hf_save
from jaxalign.hf.load import (
    load_config,
    load_params,
    weight_files,
    weights_fingerprint,
)
from jaxalign.hf.save import save_checkpoint
from jaxalign.hf.tokenizer import tokenizer_fingerprint
from jaxalign.settings import Mesh

CARD = "# A model card\n"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_load_then_save_is_bit_equal(hf_checkpoint, tmp_path, name, dtype):
    folder = hf_checkpoint(name, dtype=dtype)
    model = small_model(folder)
    save_checkpoint(tmp_path / "out", load_params(folder, model), model, source=folder, card=CARD)
    ours, theirs = tensors_of(tmp_path / "out"), tensors_of(folder)
    ours = {{"embed_out.weight": "lm_head.weight"}.get(k, k): v for k, v in ours.items()}
    theirs = {{"embed_out.weight": "lm_head.weight"}.get(k, k): v for k, v in theirs.items()}
    assert {k: (v.dtype, v.tobytes()) for k, v in ours.items()} == {
        k: (v.dtype, v.tobytes()) for k, v in theirs.items()
    }


@pytest.mark.parametrize("name", ["neox-parallel", "llama-tied-llama3", "qwen2-untied"])
def test_transformers_gives_equal_logits_for_the_export(hf_checkpoint, tmp_path, name):
    folder = hf_checkpoint(name)
    model = small_model(folder, mesh=Mesh(data=2, fsdp=2, tensor=2))
    params = load_params(folder, model)
    save_checkpoint(
        tmp_path / "out", params, model, source=folder, card=CARD, max_shard_bytes=30_000
    )
    assert len(weight_files(tmp_path / "out")) > 2
    rows = plain_rows([9, 4], 9)
    before, after = (torch_logits(in_torch(f), rows) for f in (folder, tmp_path / "out"))
    np.testing.assert_array_equal(after, before)


def test_an_export_in_another_dtype_says_so_in_its_configuration(hf_checkpoint, tmp_path):
    folder = hf_checkpoint("llama-gqa")
    model = small_model(folder)
    params = load_params(folder, model)
    save_checkpoint(tmp_path / "out", params, model, source=folder, dtype="bfloat16", card=CARD)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (theirs.dtype, load_config(tmp_path / "out")["dtype"]) == (torch.bfloat16, "bfloat16")


def test_an_export_in_another_dtype_has_the_tower_of_images_in_it_too(hf_checkpoint, tmp_path):
    folder = hf_checkpoint("gemma3-images")
    model = small_model(folder)
    params = load_params(folder, model)
    save_checkpoint(
        tmp_path / "out", params, model, source=folder, dtype="bfloat16", card=CARD, pad=("<s>", 1)
    )
    ours, theirs = tensors_of(tmp_path / "out"), tensors_of(folder)
    assert {name: tensor.dtype.name for name, tensor in ours.items()} == dict.fromkeys(
        theirs, "bfloat16"
    )
    name = "multi_modal_projector.mm_input_projection_weight"
    np.testing.assert_array_equal(ours[name], theirs[name].astype(ours[name].dtype))
    config = load_config(tmp_path / "out")
    assert (config["pad_token_id"], config["text_config"]["pad_token_id"]) == (1, 1)


def test_an_export_carries_tokenizer_card_and_generation_settings(hf_checkpoint, tmp_path):
    folder = hf_checkpoint("llama-gqa")
    model = small_model(folder)
    save_checkpoint(tmp_path / "out", load_params(folder, model), model, source=folder, card=CARD)
    assert tokenizer_fingerprint(tmp_path / "out") == tokenizer_fingerprint(folder)
    assert (tmp_path / "out" / "README.md").read_text() == CARD
    assert (tmp_path / "out" / "generation_config.json").is_file()


@pytest.fixture
def named_templates(hf_checkpoint, tmp_path):
    """A checkpoint whose tokenizer has chat templates with names."""
    folder = shutil.copytree(hf_checkpoint("llama-gqa"), tmp_path / "named")
    (folder / "chat_template.jinja").write_text("plain")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("with tools")
    return folder


@pytest.mark.parametrize(
    ("template", "exported"),
    [(None, {"default": "plain", "tool_use": "with tools"}), ("another", "another")],
)
def test_an_export_has_the_chat_templates_of_the_stage(
    named_templates, tmp_path, template, exported
):
    model = small_model(named_templates)
    params = load_params(named_templates, model)
    out = tmp_path / "out"
    save_checkpoint(out, params, model, source=named_templates, card=CARD, template=template)
    assert transformers.AutoTokenizer.from_pretrained(out).chat_template == exported


def test_the_fingerprint_of_a_tokenizer_is_over_chat_templates_with_names(named_templates):
    before = tokenizer_fingerprint(named_templates)
    (named_templates / "additional_chat_templates" / "tool_use.jinja").write_text("other")
    assert tokenizer_fingerprint(named_templates) != before


def test_saving_replaces_an_older_export_and_leaves_nothing_beside_it(hf_checkpoint, tmp_path):
    folder = hf_checkpoint("llama-gqa")
    model = small_model(folder)
    for left in ("out", ".out.partial", ".out.old"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "stale").touch()
    save_checkpoint(tmp_path / "out", load_params(folder, model), model, source=folder, card=CARD)
    assert [f.name for f in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out" / "stale").exists()


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
def test_a_failed_save_leaves_the_older_export_whole(hf_checkpoint, tmp_path, monkeypatch, error):
    folder = hf_checkpoint("llama-gqa")
    model = small_model(folder)
    older = shutil.copytree(folder, tmp_path / "out")

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(hf_save, "save_file", fail)
    with pytest.raises((RunError, KeyboardInterrupt)):
        save_checkpoint(older, load_params(folder, model), model, source=folder, card=CARD)
    assert [f.name for f in tmp_path.iterdir()] == ["out"]
    assert weights_fingerprint(older) == weights_fingerprint(folder)


def test_a_full_disk_is_one_clear_error(hf_checkpoint, tmp_path, monkeypatch):
    folder = hf_checkpoint("llama-gqa")
    model = small_model(folder)

    def fail(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(hf_save, "save_file", fail)
    with pytest.raises(RunError, match=r"cannot be written \(No space left on device"):
        save_checkpoint(tmp_path / "o", load_params(folder, model), model, source=folder, card="")


def test_weights_that_overflow_the_export_dtype_are_refused(hf_checkpoint, tmp_path):
    folder = hf_checkpoint("llama-gqa")
    model = small_model(folder)
    params = jax.tree.map(lambda x: 1e6 * x, load_params(folder, model))
    with pytest.raises(UserError, match="values that are not finite in float16"):
        save_checkpoint(tmp_path / "o", params, model, source=folder, dtype="float16", card=CARD)
