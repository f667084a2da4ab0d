"""Reward models as Hugging Face checkpoints: transformers' own heads, and ours."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch
import transformers
from lib.checkpoints import (
    CONFIGS,
    ONE_PER_FAMILY,
    SMALL,
    classifier,
    load,
    logits,
    plain_rows,
    small_model,
    tensors_of,
    write_tokenizer,
)
from lib.packing import make_example
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from jaxalign.core.sharding import make_mesh
from jaxalign.data.store import Examples
from jaxalign.errors import UserError
from jaxalign.hf.load import load_params
from jaxalign.hf.reward import new_head, with_scores
from jaxalign.hf.save import save_checkpoint
from jaxalign.hf.tokenizer import load_tokenizer, pad_token
from jaxalign.models.decoder import build
from jaxalign.models.families import read_config
from jaxalign.settings import Mesh

FAST = ["neox-parallel", "llama-gqa", "qwen2-tied", "llama-tied-llama3", "qwen2-untied"]
SLOW = [
    name
    for name in ONE_PER_FAMILY
    if name not in FAST
    and CONFIGS[name]["model_type"] in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
]
NAMES = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
NUMBERS = [
    *((name, 1) for name in FAST),
    *(("llama-gqa", scores) for scores in (2, 4)),  # no family has its own number
    *(pytest.param(name, 1, marks=pytest.mark.slow) for name in SLOW),
]
LENGTHS = [9, 4, 1]
RAW = SMALL | CONFIGS["llama-gqa"] | {"architectures": ["LlamaForSequenceClassification"]}


def theirs(model, rows):
    """[K, scores] of transformers, of rows padded on the right."""
    ids, mask = (torch.tensor(rows[key]).long() for key in ("ids", "segment"))
    with torch.no_grad():
        return model(ids, attention_mask=mask).logits.float().numpy()


def ours(model, params, rows):
    """[K, scores] at the last token of each row."""
    last = rows["segment"].sum(1) - 1
    return logits(model, params, rows)[np.arange(len(last)), last]


@pytest.mark.parametrize("name, scores", NUMBERS)
def test_scores_are_those_of_transformers(tmp_path, name, scores):
    model, rows = classifier(tmp_path, name, scores), plain_rows(LENGTHS, 9)
    reward = small_model(tmp_path)
    assert reward.spec.scores == scores
    found = ours(reward, load_params(tmp_path, reward), rows)
    np.testing.assert_allclose(found, theirs(model, rows), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_load_then_save_of_a_reward_model_is_bit_equal(tmp_path, name):
    classifier(tmp_path / "in", name, 4)
    model = small_model(tmp_path / "in", mesh=Mesh(data=2, fsdp=2, tensor=2))
    params = load_params(tmp_path / "in", model)
    save_checkpoint(tmp_path / "out", params, model, source=tmp_path / "in", card="")
    found, wanted = tensors_of(tmp_path / "out"), tensors_of(tmp_path / "in")
    assert {k: v.tobytes() for k, v in found.items()} == {k: v.tobytes() for k, v in wanted.items()}
    before, after = (json.loads((tmp_path / f / "config.json").read_text()) for f in ("in", "out"))
    assert before == after


def with_new_head(source, scores, **options):
    """The reward model that a stage would start with, and its parameters."""
    raw = json.loads((source / "config.json").read_text())
    mesh = make_mesh(Mesh(**options) if options else Mesh(), jax.devices()[: 8 if options else 1])
    model = build(with_scores(read_config(raw), scores, source), mesh)
    head = new_head(source, model, jax.random.key(3))
    return model, load_params(source, model, made=head)


@pytest.mark.parametrize("name, scores", NUMBERS)
def test_transformers_gives_equal_scores_for_the_export(hf_checkpoint, tmp_path, name, scores):
    folder, rows = hf_checkpoint(name), plain_rows(LENGTHS, 9)
    model, params = with_new_head(folder, scores)
    pad = ("<pad>", 0)
    save_checkpoint(tmp_path / "out", params, model, source=folder, card="", pad=pad)
    read, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (read.config.num_labels, read.config.pad_token_id) == (scores, 0)
    assert read.config.architectures == [type(read).__name__]
    expected = ours(model, params, rows)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(theirs(read, rows), expected, rtol=1e-5, atol=1e-5)


def test_a_new_head_is_normal_and_the_same_for_the_same_key_on_any_mesh(hf_checkpoint):
    heads = [
        np.asarray(with_new_head(hf_checkpoint("llama-gqa"), 64, **mesh)[1]["head"]["kernel"])
        for mesh in ({}, {"data": 2, "fsdp": 2, "tensor": 2})
    ]
    np.testing.assert_array_equal(*heads)
    assert abs(heads[0].std() / 0.02 - 1) < 0.1


def test_a_reward_model_keeps_its_head(tmp_path):
    classifier(tmp_path, "llama-gqa", 1)
    assert new_head(tmp_path, small_model(tmp_path), jax.random.key(0)) is None


def test_an_unembedding_beside_a_reward_head_is_passed_over(tmp_path):
    from safetensors.numpy import load_file, save_file

    classifier(tmp_path, "llama-gqa", 1)
    file = tmp_path / "model.safetensors"
    held = load_file(file)
    save_file(held | {"lm_head.weight": held["model.embed_tokens.weight"]}, file)
    assert load(tmp_path)["head"]["kernel"].shape == (SMALL["hidden_size"], 1)


@pytest.mark.parametrize(
    ("labels", "scores"),
    [({}, 2), ({"num_labels": 1}, 1), ({"id2label": {"0": "a", "1": "b", "2": "c"}}, 3),
     ({"num_labels": 1, "id2label": {"0": "a"}}, 1)],
)  # fmt: skip
def test_the_number_of_scores_is_that_of_the_labels(labels, scores):
    assert read_config(RAW | labels).scores == scores


def test_labels_of_a_language_model_are_no_scores():
    raw = RAW | {"architectures": ["LlamaForCausalLM"], "num_labels": 3}
    assert read_config(raw).scores == 0


@pytest.mark.parametrize(
    ("labels", "message"),
    [({"num_labels": 2, "id2label": {"0": "a"}}, "id2label has 1 labels, num_labels is 2"),
     ({"num_labels": "two"}, "num_labels: got None, 'two'"),
     ({"id2label": ["a"]}, r"id2label, num_labels: got \['a'\]")],
)  # fmt: skip
def test_labels_that_contradict_each_other_are_refused(labels, message):
    with pytest.raises(UserError, match=message):
        read_config(RAW | labels)


def test_a_head_of_another_size_names_both(tmp_path):
    config = dataclasses.replace(read_config(RAW), scores=3)
    with pytest.raises(UserError, match="gives 3 scores, and the objective reads 1"):
        with_scores(config, 1, tmp_path)
    with pytest.raises(UserError, match=r"a reward model, whose head gives scores \(3\)"):
        with_scores(config, 0, tmp_path)


def ends_with(*ends):
    """Examples whose responses end with given tokens."""
    return Examples.of([make_example([5], [6, end]) for end in ends])


def tokenizer(folder, **settings):
    write_tokenizer(folder)
    file = folder / "tokenizer_config.json"
    raw = json.loads(file.read_text()) | settings
    file.write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))
    return load_tokenizer(folder)


@pytest.mark.parametrize(
    ("settings", "ends", "pad"),
    [({}, [2], "<pad>"), ({}, [0, 2], "<s>"), ({"pad_token": "<s>"}, [2], "<s>"),
     *(({"pad_token": token}, [9], "<pad>") for token in ("</s>", None))],
)  # fmt: skip
def test_padding_is_told_from_the_end_of_every_response(tmp_path, settings, ends, pad):
    config = read_config(RAW)
    assert pad_token(tokenizer(tmp_path, **settings), [ends_with(*ends)], config) == pad


def test_a_tokenizer_without_a_token_to_pad_with_is_refused(tmp_path):
    with pytest.raises(UserError, match="no pad token but those that end a response"):
        pad_token(tokenizer(tmp_path), [ends_with(0, 1, 2, 3)], read_config(RAW))


def test_a_family_without_reward_models_in_transformers_is_refused(tmp_path):
    spec = read_config(SMALL | CONFIGS["granite"])
    with pytest.raises(UserError, match="no reward model of model_type 'granite'"):
        with_scores(spec, 1, tmp_path)
