"""The scored part of an answer: begun answers, marks, stop tokens, parts left out."""

from __future__ import annotations

import numpy as np
import pytest
from lib.chats import CHAT, PAIR, SCORED, bot, load, one, scored, user, wholes
from lib.tokenizers import CHATML, END, make_tokenizer

from jaxalign.core import layouts
from jaxalign.data.encode import Encoder
from jaxalign.data.spans import Chat
from jaxalign.errors import UserError

LOOK = {"type": "function", "function": {"name": "look", "arguments": {"at": "Rome"}}}


# Begun answers

THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think>\n"
    "{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("begun", ["th", "", "in", "yes "])
def test_an_answer_is_scored_from_the_end_of_what_a_sampler_is_given_to_continue(begun):
    tokenizer = make_tokenizer(chat_template=THINKS, eos_token=END)
    prompt = [user("Hi"), bot(begun, reasoning_content="grey")]
    row = {"prompt": prompt, "completion": [bot("ink no")]}
    item = one(row, tokenizer=tokenizer, layout=layouts.DEMOS)
    asked = Encoder(tokenizer).prompts([("row 1", Chat(prompt))])
    np.testing.assert_array_equal(item.prompt, asked[0])
    assert scored(item, tokenizer) == ["ink no<|im_end|>"]
    assert "<think>\ngrey\n</think>" in wholes(item, tokenizer)[0]


def test_a_begun_turn_that_is_written_in_another_way_once_it_goes_on_is_refused():
    template = CHATML.replace("m['content']", "m['content'] | replace('yes no', 'no')")
    row = {"prompt": [user("Hi"), bot("yes")], "completion": [bot(" no")]}
    with pytest.raises(UserError, match="in another way when its rest follows"):
        load(row, tokenizer=make_tokenizer(chat_template=template), layout=layouts.DEMOS)


def test_a_tool_call_at_the_end_of_a_prompt_is_context_for_a_sampler_too():
    template = CHATML.replace(
        "{{ m['content'] }}", "{{ m['content'] or m['tool_calls'] | tojson }}"
    )
    tokenizer = make_tokenizer(chat_template=template)
    (ids,) = Encoder(tokenizer).prompts(
        [("row 1", Chat([user("Hi"), bot(None, tool_calls=[LOOK])]))]
    )
    assert tokenizer.decode(ids).endswith('"Rome"}}}]<|im_end|>\n<|im_start|>assistant\n')


# What a template leaves out


def calls(written):
    """The scored text of two equal tool calls that a template writes by an expression."""
    row = {"prompt": [user("Hi")], "completion": [bot("", tool_calls=[LOOK, LOOK])]}
    template = CHATML.replace("{{ m['content'] }}", "{{ m['content'] }}" + written)
    tokenizer = make_tokenizer(chat_template=template, eos_token=END)
    return scored(one(row, tokenizer=tokenizer, layout=layouts.DEMOS), tokenizer)[0]


@pytest.mark.parametrize(
    "written",
    [
        "{{ m.tool_calls[0].function | tojson if m.tool_calls }}",
        "{% for call in m.tool_calls %}{{ call.function.name }}{% endfor %}",
    ],
    ids=["the second of two equal calls", "arguments"],
)
def test_a_template_that_leaves_out_a_part_of_tool_calls_is_refused(written):
    with pytest.raises(UserError, match=r"leaves out '(Rome|look)'"):
        calls(written)


def test_a_template_that_leaves_out_reasoning_with_the_words_of_the_answer_is_refused():
    row = {"prompt": [user("Hi")], "completion": [bot("yes", reasoning_content="yes")]}
    with pytest.raises(UserError, match="leaves out 'yes'"):
        load(row, layout=layouts.DEMOS)


def test_reasoning_that_the_content_repeats_is_needed_once():
    answer = bot("<think>grey</think>yes", reasoning_content="grey")
    item = one({"prompt": [user("Hi")], "completion": [answer]}, layout=layouts.DEMOS)
    assert scored(item) == ["<think>grey</think>yes<|im_end|>"]


def test_arguments_that_a_template_writes_as_they_are_become_json_text():
    shown = calls(
        "{% for c in m.tool_calls %}{{ c.function.name }}{{ c.function.arguments }}{% endfor %}"
    )
    assert shown == 'look{"at": "Rome"}look{"at": "Rome"}<|im_end|>'


# Marks


def marked(body, **settings):
    """The scored text of an answer with reasoning that a template writes so."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        + body
        + "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n"
        + ("<think>\n" if settings else "")
        + "{% endif %}"
    )
    tokenizer = make_tokenizer(chat_template=template, eos_token=END)
    row = {"prompt": [user("Hi")], "completion": [bot("yes", reasoning_content="grey")]}
    return scored(one(row, tokenizer=tokenizer, layout=layouts.DEMOS, **settings), tokenizer)[0]


BODY = "{% generation %}{{ m.reasoning_content }}{% endgeneration %} {{ m.content }}"


@pytest.mark.parametrize("end", ["<|im_end|>", ""], ids=["stop token", "no stop token"])
@pytest.mark.parametrize("settings", [{}, {"generation_prompt": "match"}], ids=["", "match"])
def test_an_unmarked_part_before_the_stop_token_is_context(end, settings):
    assert marked(BODY + end, **settings) == "grey<|im_end|>"


def test_a_token_that_spans_the_end_of_a_marked_part_is_scored():
    body = "{{ m.reasoning_content }}{% generation %} ye{% endgeneration %}s<|im_end|>"
    assert marked(body) == " yes<|im_end|>"


def test_a_template_whose_marks_a_row_does_not_reach_is_refused():
    body = "{% if m.tool_calls %}{% generation %}{% endgeneration %}{% endif %}"
    with pytest.raises(UserError, match="mark nothing of the answer"):
        marked(body + "{{ m.reasoning_content }} {{ m.content }}<|im_end|>")


# Stop tokens of any kind


def with_token(text, **options):
    """A tokenizer with an added token that is not special, and its id."""
    tokenizer = make_tokenizer(**options)
    tokenizer.add_tokens([text])
    return tokenizer, tokenizer.convert_tokens_to_ids(text)


@pytest.mark.parametrize(
    "row", [PAIR, {"prompt": "Hi", "chosen": "yes<eot>\n", "rejected": "no<eot>"}]
)
def test_a_stop_token_that_is_not_special_ends_an_answer(row):
    template = CHATML.replace(END, "<eot>")
    tokenizer, stop = with_token("<eot>", chat_template=template)
    item = one(row, tokenizer=tokenizer, stops=[stop])
    assert scored(item, tokenizer) == ["yes<eot>", "no<eot>"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [user("Hi")], "completion": [bot("yes no grey")]},
        {"prompt": "Hi", "completion": "yes no grey"},
    ],
)
def test_a_word_at_which_generation_stops_is_refused_inside_an_answer(row):
    (stop,) = CHAT(" no")["input_ids"]
    with pytest.raises(UserError, match=f"goes on after the token 'Ġno', id {stop}"):
        load(row, layout=layouts.DEMOS, stops=[stop])


def test_a_text_ends_at_the_token_by_which_the_chat_template_ends_turns():
    tokenizer = make_tokenizer(chat_template=CHATML)
    row = {"prompt": "Hi", "completion": " yes<|im_end|>\n"}
    assert scored(one(row, tokenizer=tokenizer, layout=layouts.DEMOS), tokenizer) == [
        " yes<|im_end|>"
    ]


# Values for the template


def test_tools_among_the_values_of_the_settings_reach_the_template():
    tokenizer = make_tokenizer(chat_template="{{ tools | length if tools }}" + CHATML)
    given = {"tools": [LOOK, LOOK]}
    item = one(PAIR, tokenizer=tokenizer, chat_template_kwargs=given)
    assert wholes(item, tokenizer)[0].startswith("2<|im_start|>")


@pytest.mark.parametrize("name", ["messages", "add_generation_prompt"])
def test_values_that_the_chat_itself_gives_are_refused(name):
    with pytest.raises(UserError, match=f"chat_template_kwargs gives '{name}'; leave it out"):
        load(PAIR | {"chat_template_kwargs": {name: []}})


@pytest.mark.parametrize("name", ["self", "opens", "chat", "context"])
def test_a_value_may_have_any_other_name(name):
    tokenizer = make_tokenizer(chat_template=CHATML, eos_token=END)
    assert scored(one(PAIR | {"chat_template_kwargs": {name: 1}}, tokenizer=tokenizer)) == SCORED
