"""Which models answer chats if nobody says so."""

import json

import pytest
from lib.tokenizers import CHATML, make_tokenizer

from jaxalign.data.encode import Encoder
from jaxalign.hf.card import chat_choice

CHATTY = Encoder(make_tokenizer(chat_template=CHATML))


def model(folder, card=None):
    folder.mkdir(parents=True)
    if card is not None:
        (folder / "README.md").write_text(card)
    return folder


@pytest.mark.parametrize(
    "name",
    ["Qwen2.5-7B-Instruct", "Llama-2-7b-chat-hf", "gemma-2-2b-it", "Mistral-7B-Instruct-v0.3"],
)
def test_a_name_with_a_word_for_chats_turns_it_on(tmp_path, name):
    chat, why = chat_choice(model(tmp_path / name), CHATTY)
    assert chat
    assert "the name of the model has the word" in why


@pytest.mark.parametrize("name", ["Qwen2.5-7B", "italian", "chatty"])
def test_a_name_without_such_a_word_leaves_it_off(tmp_path, name):
    assert not chat_choice(model(tmp_path / name), CHATTY).chat


def test_the_name_of_a_repository_is_found_in_the_cache_of_the_hub(tmp_path):
    cached = tmp_path / "models--google--gemma-2b-it" / "snapshots" / "0123"
    assert chat_choice(model(cached), CHATTY).chat


def test_the_owner_of_a_repository_says_nothing(tmp_path):
    cached = tmp_path / "models--chat--base" / "snapshots" / "0123"
    assert not chat_choice(model(cached), CHATTY).chat


@pytest.mark.parametrize("tag", ["conversational", "chat", "instruct"])
def test_a_tag_of_the_card_turns_it_on(tmp_path, tag):
    folder = model(tmp_path / "model", f"---\ntags: [jaxalign, {tag}]\n---\n# Title\n")
    assert f"the model card has the tag '{tag}'" in chat_choice(folder, CHATTY).why


@pytest.mark.parametrize(
    "card",
    ["# chat\n", "---\ntags: [x\n---\n", "---\n- chat\n---\n", "---\ntags: 3\n---\n", "\x80"],
)
def test_a_card_without_readable_tags_leaves_it_off(tmp_path, card):
    folder = model(tmp_path / "model")
    (folder / "README.md").write_bytes(card.encode("latin-1"))
    assert not chat_choice(folder, CHATTY).chat


def test_an_adapter_is_one_for_chats_if_its_base_is(tmp_path):
    base, adapter = model(tmp_path / "base-chat"), model(tmp_path / "adapter")
    config = {"base_model_name_or_path": str(base)}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    assert chat_choice(adapter, CHATTY).chat


def test_without_a_chat_template_it_is_off(tmp_path):
    chat, why = chat_choice(model(tmp_path / "model-chat"), Encoder(make_tokenizer()))
    assert (chat, why) == (False, "the tokenizer has no chat template")


def test_a_template_that_is_given_turns_it_on(tmp_path):
    encoder = Encoder(make_tokenizer(), template=CHATML)
    assert chat_choice(model(tmp_path / "model"), encoder).chat
