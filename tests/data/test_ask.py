"""Prompts to be answered: rows of files, texts that become chats, system messages."""

import pytest
from lib.rows import write
from lib.tokenizers import CHATML, make_tokenizer

from jaxalign.data.ask import asked, prompt_row, prompt_rows, text_row
from jaxalign.data.encode import Encoder
from jaxalign.data.spans import Chat
from jaxalign.errors import UserError

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "no"}
SYSTEM = {"role": "system", "content": "green"}


def row(**columns):
    return prompt_row(columns, "line 1")


def turns(found, chat=True, system=None):
    ((_, made),) = asked([found], chat=chat, system=system)
    assert isinstance(made, Chat)
    return list(made.turns)


@pytest.mark.parametrize("name", ["messages", "conversations"])
def test_a_whole_chat_is_asked_without_its_answer(name):
    found = row(**{name: [USER, ANSWER]})
    assert (found.prompt, found.given) == ([USER], [USER])


def test_a_prompt_is_kept_as_given():
    given = [{"from": "human", "value": "Hi"}]
    found = row(prompt=given)
    assert (found.prompt, found.given) == ([USER], given)


def test_a_prompt_that_ends_with_a_turn_of_the_assistant_is_to_be_continued():
    assert row(prompt=[USER, ANSWER]).prompt == [USER, ANSWER]


def test_rows_of_a_file_have_their_places(tmp_path):
    path = write(tmp_path, {"prompt": "a"}, {"messages": [USER]})
    assert [found.where for found in prompt_rows(str(path))] == [f"{path} line 1", f"{path} line 2"]


def test_tools_and_values_reach_the_chat_template():
    template = "{{ tools[0].name }} {{ mood }} {{ style }}"
    encoder = Encoder(make_tokenizer(), template=template)
    found = row(prompt=[USER], tools='[{"name": "look"}]', chat_template_kwargs={"mood": "glad"})
    variables = {"mood": "sad", "style": "short"}
    (ids,) = encoder.prompts(asked([found], chat=False, variables=variables))
    assert encoder.tokenizer.decode(ids) == "look glad short"


def test_a_text_becomes_the_message_of_a_user_with_chat():
    encoder = Encoder(make_tokenizer(chat_template=CHATML))
    (ids,) = encoder.prompts(asked([text_row("Hi", "x")], chat=True, system="green"))
    assert encoder.tokenizer.decode(ids) == (
        "<|im_start|>system\ngreen<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_text_stays_as_it_is_without_chat():
    assert asked([text_row("Hi", "x")], chat=False) == [("x", "Hi")]


def test_a_system_message_comes_before_messages():
    assert turns(row(prompt=[USER]), chat=False, system="green") == [SYSTEM, USER]


REFUSED = {
    "system without chat": (row(prompt="Hi"), {"chat": False, "system": "x"}, r"\(--chat\)"),
    "empty": (row(prompt=" "), {}, "the prompt is empty"),
    "no user": (row(prompt=[SYSTEM]), {}, "no turn of the user; got roles system"),
    "no turns": (row(prompt=[]), {}, "no turn of the user; got roles none"),
    "two systems": (row(prompt=[SYSTEM, USER]), {"system": "x"}, "begins with a turn of the sys"),
}


@pytest.mark.parametrize(("found", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_a_prompt_that_does_not_fit_is_named(found, options, message):
    with pytest.raises(UserError, match=f"^line 1: .*{message}"):
        turns(found, **options)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"messages": "Hi"}, "'messages' is text"),
        ({"prompt": None, "text": "Hi"}, "no 'prompt'"),
        ({"prompt": "Hi", "tools": 3}, "'tools' is 3; wanted a JSON list"),
        ({"prompt": "\ud800"}, "surrogate"),
    ],
)
def test_a_row_without_a_readable_prompt_is_named(columns, message):
    with pytest.raises(UserError, match=f"line 1: .*{message}"):
        row(**columns)
