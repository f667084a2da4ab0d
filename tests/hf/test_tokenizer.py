"""The tokenizer of a checkpoint, as its files say and as transformers reads them."""

import json

import pytest
import tokenizers
import transformers
from lib.checkpoints import edit_json

from jaxalign.data.encode import Encoder
from jaxalign.errors import UserError
from jaxalign.hf.tokenizer import load_tokenizer, read_template


def test_tokenizer_json_is_used_whatever_the_model_type(hf_checkpoint):
    folder = hf_checkpoint("qwen2-untied")
    text = "what is 12 + 1212?"
    wanted = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    assert load_tokenizer(folder).encode(text) == wanted


def test_special_tokens_and_template_come_along(hf_checkpoint):
    tokenizer = load_tokenizer(hf_checkpoint("qwen2-untied"))
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], return_dict=False)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, ids[0]) == (1, 2, 3)


def test_a_missing_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer.json: missing"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("old", ["tokenizer.model", "vocab.json"])
def test_a_tokenizer_in_another_format_says_how_to_convert_it(tmp_path, old):
    (tmp_path / old).write_text("{}")
    message = rf"{old} is not read; .*AutoTokenizer.from_pretrained\('{tmp_path}'\)"
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path)


def test_the_line_that_the_message_gives_converts_a_tokenizer(damaged_checkpoint):
    file = damaged_checkpoint / "tokenizer.json"
    before = load_tokenizer(damaged_checkpoint).encode("what is 12 + 1212?")
    vocab = json.loads(file.read_text())["model"]["vocab"]
    file.unlink()
    (damaged_checkpoint / "vocab.json").write_text(json.dumps(vocab))
    (damaged_checkpoint / "merges.txt").write_text("1 2\n")
    edit_json(damaged_checkpoint / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    with pytest.raises(UserError) as error:
        load_tokenizer(damaged_checkpoint)
    exec(f"import transformers; {str(error.value).partition('Python: ')[2]}")
    assert load_tokenizer(damaged_checkpoint).encode("what is 12 + 1212?") == before


@pytest.mark.parametrize(
    "saved",
    [
        {"truncation": dict(max_length=16, stride=0, strategy="LongestFirst", direction="Right")},
        {
            "padding": {
                "strategy": {"Fixed": 128},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "<pad>",
            }
        },
    ],
    ids=["truncation", "padding"],
)
def test_truncation_and_padding_saved_with_a_tokenizer_are_off(damaged_checkpoint, saved):
    text = ["1+1= " * 20, "2"]
    before = load_tokenizer(damaged_checkpoint)(text).input_ids
    edit_json(damaged_checkpoint / "tokenizer.json", **saved)
    assert load_tokenizer(damaged_checkpoint)(text).input_ids == before


@pytest.mark.parametrize(
    "keys",
    [
        {"extra_special_tokens": ["<|user|>"]},
        {"extra_special_tokens": {"user_token": "<|user|>"}},
        {"tokenizer_class": "SomeTokenizerOfTheFuture"},
    ],
)
def test_settings_of_a_tokenizer_that_change_no_ids_are_accepted(damaged_checkpoint, keys):
    text = "<|user|>what is 12?"
    before = load_tokenizer(damaged_checkpoint)(text).input_ids
    edit_json(damaged_checkpoint / "tokenizer_config.json", **keys)
    assert load_tokenizer(damaged_checkpoint)(text).input_ids == before


@pytest.mark.parametrize("named", [{}, {"add_bos_token": True}, {"add_bos_token": False}])
@pytest.mark.parametrize("written", [False, True])
def test_bos_is_where_transformers_puts_it(damaged_checkpoint, named, written):
    file = damaged_checkpoint / "tokenizer.json"
    plain = tokenizers.Tokenizer.from_file(str(file))
    if written:
        plain.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    plain.save(str(file))
    edit_json(damaged_checkpoint / "tokenizer_config.json", **named)
    wanted = transformers.AutoTokenizer.from_pretrained(damaged_checkpoint)("1+1=").input_ids
    (found,) = Encoder(load_tokenizer(damaged_checkpoint)).prompts([("", "1+1=")])
    assert found.tolist() == wanted


def test_a_damaged_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer.json: not a usable tokenizer"):
        load_tokenizer(tmp_path)


def test_a_large_id_in_a_small_vocabulary_is_refused(damaged_checkpoint):
    """`tokenizers` would print 2^31 lines."""
    file = damaged_checkpoint / "tokenizer.json"
    about = json.loads(file.read_text())
    about["model"]["vocab"]["a"] = 2**31
    file.write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"model.vocab: got id 2,147,483,648 for 'a' in a voc"):
        load_tokenizer(damaged_checkpoint)


def test_a_tokenizer_that_transformers_changes_is_refused(hf_checkpoint, monkeypatch):
    changed = transformers.PreTrainedTokenizerFast.from_pretrained(hf_checkpoint("llama-gqa"))
    changed.add_tokens(["Hello"])
    monkeypatch.setattr(
        transformers.PreTrainedTokenizerFast, "from_pretrained", lambda *_, **__: changed
    )
    with pytest.raises(UserError, match="other ids than the file itself on a probe text"):
        load_tokenizer(hf_checkpoint("llama-gqa"))


def test_an_empty_chat_template_is_refused_and_no_file_is_no_template(tmp_path):
    (tmp_path / "empty.jinja").write_text(" \n")
    with pytest.raises(UserError, match=r"empty\.jinja: an empty chat template"):
        read_template(str(tmp_path / "empty.jinja"))
    assert read_template(None) is None
