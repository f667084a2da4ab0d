"""Chats on the command line."""

import json
import re

import pytest
from lib import runs as h

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a' }}{% endif %}"
)
HOW = ("--max-new", "4", "--dtype", "float32", "--temperature", "0")


@pytest.fixture(scope="module")
def model(inputs, tmp_path_factory):
    folder = h.copy_folder(inputs / "model", tmp_path_factory.mktemp("chat") / "model")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def test_generate_answers_a_message_and_a_system_message(model, compile_cache, jaxalign_command):
    chat = ("--prompt", "1+1=", "--chat", "--system", "add")
    found = h.cli("generate", str(model), *chat, *HOW, cache=compile_cache)
    assert (found.returncode, found.stderr) == (0, "")
    text = ("--prompt", "sadd\nu1+1=\na", "--no-chat")
    _, wanted, _ = jaxalign_command("generate", model, *text, *HOW)
    assert json.loads(found.stdout) == json.loads(wanted) | {"prompt": "1+1="}


def test_chat_answers_the_lines_of_standard_input(model, compile_cache):
    lines = "1+1=\n/reset\n1+1=\n"
    found = h.cli("chat", str(model), *HOW, cache=compile_cache, input=lines)
    assert found.returncode == 0, found.stderr
    half = len(found.stdout) // 2
    assert found.stdout[:half] == found.stdout[half:] != ""


def test_chat_is_off_where_the_model_does_not_ask_for_it(model, jaxalign_command):
    code, _, err = jaxalign_command("generate", model, "--prompt", "1+1=", *HOW)
    assert code == 0
    assert err.startswith("chat: off, neither the name of the model nor a tag of its card")


WRONG = {
    "system without chat": (["--system", "x", "--no-chat"], "--prompt: a text without chat has no"),
    "no such template": (["--chat-template", "no.jinja"], "no.jinja: cannot be read as text"),
    "no such folder": (["--out", "no/where.jsonl"], "--out: no folder no; make it"),
    "a folder": (["--out", "."], "--out: . is a folder; give a file"),
    "values": (["--chat-template-kwargs", "[1]"], "--chat-template-kwargs is .*wanted a JSON obj"),
}


@pytest.mark.parametrize(("flags", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_flag_is_one_error(model, refused, flags, message):
    assert re.search(message, refused("generate", model, "--prompt", "1+1=", *flags, *HOW))


def test_a_broken_chat_template_is_one_error(model, refused, tmp_path):
    (tmp_path / "broken.jinja").write_text("{% if %}")
    flags = ("--chat", "--chat-template", tmp_path / "broken.jinja")
    assert "--prompt: chat template: " in refused("generate", model, "--prompt", "1+1=", *flags)


def test_an_empty_prompt_is_one_error(model, refused):
    assert "--prompt: the prompt is empty" in refused("generate", model, "--prompt", "", "--chat")


def test_chat_without_a_chat_template_is_one_error(inputs, refused):
    error = refused("generate", inputs / "model", "--prompt", "1+1=", "--chat")
    assert "a chat needs a chat template, and the tokenizer has none" in error
    assert "has no chat template; give one" in refused("chat", inputs / "model")
