"""The scored tokens of chats: situations of public bug reports, each with its right value."""

from __future__ import annotations

import json

import pytest
from lib.chats import (
    CHAT,
    HEAD,
    PAIR,
    SCORED,
    bot,
    load,
    one,
    scored,
    system,
    user,
    wholes,
)
from lib.tokenizers import CHATML, END, make_tokenizer

from jaxalign.core import layouts
from jaxalign.data.encode import Encoder
from jaxalign.data.tokenize import make_examples
from jaxalign.errors import UserError
from jaxalign.settings import Data

# Whole chats next to the prompt


@pytest.mark.parametrize("prompt", ["Hi", [user("Hi")], [system("be nice"), user("Hi")], None])
@pytest.mark.parametrize("instructed", [False, True])
def test_a_prompt_that_the_responses_repeat_is_cut(prompt, instructed):
    start = [system("be nice"), user("Hi")] if instructed else [user("Hi")]
    row = {"prompt": prompt, "chosen": [*start, bot("yes")], "rejected": [*start, bot("no")]}
    data = load(row)
    assert scored(data[0]) == SCORED
    told = instructed or (isinstance(prompt, list) and len(prompt) == 2)
    first = "<|im_start|>system\nbe nice<|im_end|>\n" if told else ""
    assert CHAT.decode(data[0].prompt) == f"{first}<|im_start|>user\nHi<|im_end|>\n{HEAD}"
    counted = data.counts.noted.get("prompt repeated by the response, and cut", 0)
    assert counted == (prompt is not None)


@pytest.mark.parametrize("layout", [layouts.DEMOS, layouts.LABELED])
def test_a_prompt_that_a_completion_repeats_is_cut(layout):
    row = {"prompt": [user("Hi")], "completion": [user("Hi"), bot("yes")], "label": True}
    assert scored(one(row, layout=layout)) == ["yes<|im_end|>"]


def test_a_prompt_that_the_members_of_a_ranking_repeat_is_cut():
    row = {"prompt": "Hi", "responses": [[user("Hi"), bot("yes")], [user("Hi"), bot("no")]]}
    assert scored(one(row, layout=layouts.RANKED)) == SCORED


def test_a_transcript_that_repeats_its_prompt_as_text_is_cut():
    prompt = "\n\nHuman: Hi\n\nAssistant:"
    row = {"prompt": prompt, "chosen": f"{prompt} yes", "rejected": f"{prompt} no"}
    assert scored(one(row)) == [" yes<|im_end|>", " no<|im_end|>"]


@pytest.mark.parametrize(
    "prompt", [f"<|im_start|>user\nHi{HEAD}", "<\uff5cUser\uff5c>Hi", "[INST] Hi [/INST]"]
)
def test_a_rendered_prompt_that_a_response_repeats_is_cut(prompt):
    data = load({"prompt": prompt, "chosen": f"{prompt} yes", "rejected": " no"})
    assert scored(data[0]) == [" yes<|im_end|>", " no<|im_end|>"]
    assert data.counts.noted["prompt repeated by the response, and cut"] == 1


def test_a_text_that_begins_with_its_prompt_is_kept_and_noted():
    data = load({"prompt": "Hi", "chosen": "Hi yes", "rejected": " no"})
    assert scored(data[0]) == ["Hi yes<|im_end|>", " no<|im_end|>"]
    assert data.counts.noted["text of the prompt repeated by the response, and scored"] == 1


def test_a_chat_that_answers_another_prompt_is_refused():
    row = {"prompt": [user("Hi")], "completion": [user("say"), bot("yes")]}
    with pytest.raises(
        UserError, match="row 1: 'completion' begins with a turn of the user, but do"
    ):
        one(row, layout=layouts.DEMOS)


def test_responses_that_repeat_other_prompts_are_dropped_and_counted():
    bad = {"prompt": [user("Hi")], "chosen": [system("a"), user("Hi"), bot("yes")]}
    bad["rejected"] = [system("b"), user("Hi"), bot("no")]
    data = load(PAIR, bad)
    assert (len(data), data.counts.dropped) == (1, {"prompts differ": 1})


# Several turns


def test_turns_of_the_user_inside_a_response_are_context():
    def response(last):
        return [bot("hello"), user("say"), bot(last)]

    item = one({"prompt": [user("Hi")], "chosen": response("yes"), "rejected": response("no")})
    assert scored(item) == ["hello<|im_end|>yes<|im_end|>", "hello<|im_end|>no<|im_end|>"]
    assert wholes(item)[0].endswith(f"say<|im_end|>\n{HEAD}yes<|im_end|>")


MESSAGES = [system("be nice"), user("Hi"), bot("hello"), user("say"), bot("yes")]


@pytest.mark.parametrize(
    ("turns", "expected"),
    [("all", ["hello<|im_end|>yes<|im_end|>"]), ("last", ["yes<|im_end|>"])],
)
def test_messages_are_scored_in_the_turns_of_the_assistant(turns, expected):
    item = one({"messages": MESSAGES}, layout=layouts.DEMOS, turns=turns)
    assert scored(item) == expected
    assert wholes(item) == [CHAT.apply_chat_template(MESSAGES, tokenize=False).removesuffix("\n")]


def test_messages_after_the_last_answer_are_not_read():
    item = one({"messages": [*MESSAGES, user("grey")]}, layout=layouts.DEMOS)
    assert wholes(item) == wholes(one({"messages": MESSAGES}, layout=layouts.DEMOS))


def test_a_label_belongs_to_the_last_answer_of_messages():
    item = one({"messages": MESSAGES, "label": 1}, layout=layouts.LABELED)
    assert (scored(item), item.columns["label"]) == (["yes<|im_end|>"], 1.0)


def test_share_gpt_is_read():
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "yes"}]
    item = one({"conversations": turns}, layout=layouts.DEMOS)
    assert scored(item) == ["yes<|im_end|>"]
    pair = {
        "conversations": turns[:1],
        "chosen": turns[1],
        "rejected": {"from": "gpt", "value": "no"},
    }
    assert scored(one(pair)) == SCORED


def test_a_begun_turn_of_the_assistant_is_continued_and_not_scored():
    row = {"prompt": [user("Hi"), bot("Sure, it is")], "chosen": [bot(" yes")]}
    item = one(row | {"rejected": [bot(" no")]})
    assert scored(item) == [" yes<|im_end|>", " no<|im_end|>"]
    assert CHAT.decode(item.prompt).endswith(f"{HEAD}Sure, it is")


DEFAULT = (
    "{% if not messages or messages[0]['role'] != 'system' %}<|im_start|>system\nbe nice"
    "<|im_end|>\n{% endif %}" + CHATML
)
FAILS_ON_NOTHING = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nbe nice<|im_end|>\n{% endif %}"
    + CHATML
)


@pytest.mark.parametrize("template", [DEFAULT, FAILS_ON_NOTHING])
@pytest.mark.parametrize("prompt", ["", []])
def test_a_default_system_turn_is_context_without_a_prompt_too(template, prompt):
    tokenizer = make_tokenizer(chat_template=template, eos_token=END)
    item = one(PAIR | {"prompt": prompt}, tokenizer=tokenizer)
    assert scored(item) == SCORED


# Tool calls and reasoning

TOOLS = (
    "{% if tools %}<|im_start|>system\n{{ tools|tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}call {{ c.function.name }} "
    "{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }}{% endfor %}{% endfor %}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOL_CHAT = make_tokenizer(chat_template=TOOLS, eos_token=END)
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


@pytest.mark.parametrize("content", ["", None])
@pytest.mark.parametrize("arguments", [{"x": 1}, '{"x": 1}'])
def test_a_tool_call_without_content_is_scored(content, arguments):
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    row = PAIR | {"chosen": [bot(content, tool_calls=[call])]}
    item = one(row, tokenizer=TOOL_CHAT)
    assert scored(item, TOOL_CHAT) == ["call f x=1<|im_end|>", "no<|im_end|>"]


def test_the_answer_of_a_tool_is_context():
    tool = {"role": "tool", "name": "f", "content": "grey"}
    row = {"messages": [user("Hi"), bot("", tool_calls=[CALL]), tool, bot("green")]}
    item = one(row, layout=layouts.DEMOS, tokenizer=TOOL_CHAT)
    assert scored(item, TOOL_CHAT) == ["call f x=1<|im_end|>green<|im_end|>"]


@pytest.mark.parametrize("tools", [[CALL], json.dumps([CALL])])
def test_tools_reach_the_template(tools):
    item = one(PAIR | {"tools": tools}, tokenizer=TOOL_CHAT)
    assert TOOL_CHAT.decode(item.prompt).startswith('<|im_start|>system\n[{"type": "function"')


@pytest.mark.parametrize("tools", [[], "[]"])
def test_an_empty_list_of_tools_gives_the_template_none(tools):
    source = "{% if tools is not none %}You may call:{% endif %}" + CHATML
    tokenizer = make_tokenizer(chat_template=source, eos_token=END)
    assert wholes(one(PAIR | {"tools": tools}, tokenizer=tokenizer)) == wholes(one(PAIR))


def test_arguments_that_a_template_adds_to_text_are_json_text():
    template = TOOLS.replace(
        "{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }}{% endfor %}",
        "{{ '' + c.function.arguments }}",
    )
    tokenizer = make_tokenizer(chat_template=template, eos_token=END)
    item = one(PAIR | {"chosen": [bot(None, tool_calls=[CALL])]}, tokenizer=tokenizer)
    assert scored(item, tokenizer)[0] == 'call f {"x": 1}<|im_end|>'


def test_a_template_that_ignores_tool_calls_is_refused():
    with pytest.raises(UserError, match="row 1: chat template: it leaves out 'f' of the answer"):
        one(PAIR | {"chosen": [bot("", tool_calls=[CALL])]})


R1 = (
    "{% for m in messages %}{% set c = m.content %}{% if m.role == 'assistant' %}<|im_start|>"
    "{% if '</think>' in c %}{% set c = c.split('</think>')[-1] %}{% endif %}{{ c }}<|im_end|>"
    "{% else %}{{ c }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|><think>\n"
    "{% endif %}"
)
R1_CHAT = make_tokenizer(chat_template=R1, eos_token=END)
REASONED = PAIR | {"chosen": [bot("<think>\nsay</think> yes")]}


def test_an_opening_that_answers_lack_is_refused_with_both():
    message = (
        r"ends 'Hi<\|im_start\|><think>\\n', but it writes an answer without '<think>\\n': .*yes"
    )
    with pytest.raises(UserError, match=message):
        one(PAIR, tokenizer=R1_CHAT)


def test_match_trains_after_the_generation_prompt_and_keeps_the_reasoning():
    item = one(REASONED, tokenizer=R1_CHAT, generation_prompt="match")
    assert R1_CHAT.decode(item.prompt) == "Hi<|im_start|><think>\n"
    assert scored(item, R1_CHAT) == ["say</think> yes<|im_end|>", "no<|im_end|>"]


def test_rendered_trains_on_what_is_rendered_and_refuses_to_lose_the_reasoning():
    item = one(PAIR, tokenizer=R1_CHAT, generation_prompt="rendered")
    assert R1_CHAT.decode(item.prompt) == "Hi<|im_start|>"
    assert scored(item, R1_CHAT) == SCORED
    with pytest.raises(UserError, match=r"it leaves out 'say' of the answer; .* to 'match'"):
        one(REASONED, tokenizer=R1_CHAT, generation_prompt="rendered")


def test_a_template_that_drops_earlier_reasoning_gives_each_turn_its_own_sequence():
    template = CHATML.replace(
        "{{ m['content'] }}",
        "{% if m.role == 'assistant' and loop.last %}{{ m.content }}"
        "{% else %}{{ m.content.split('</think>')[-1] }}{% endif %}",
    )
    tokenizer = make_tokenizer(chat_template=template, eos_token=END)
    chat = [user("Hi"), bot("<think>a</think>yes"), user("say"), bot("<think>b</think>no")]
    item = one({"messages": chat}, layout=layouts.DEMOS, tokenizer=tokenizer)
    assert [b.response for b in item.branches] == [0, 0]
    assert scored(item, tokenizer) == ["<think>a</think>yes<|im_end|><think>b</think>no<|im_end|>"]
    assert wholes(item, tokenizer)[1].endswith(
        f"{HEAD}yes<|im_end|>\n<|im_start|>user\nsay<|im_end|>\n{HEAD}<think>b</think>no<|im_end|>"
    )


# Stop tokens


def test_the_token_by_which_a_template_ends_turns_is_a_stop_token():
    tokenizer = make_tokenizer(chat_template=CHATML)
    assert scored(one(PAIR, tokenizer=tokenizer), tokenizer) == SCORED
    assert Encoder(tokenizer).all_stops() == (
        tokenizer.eos_token_id,
        tokenizer.convert_tokens_to_ids(END),
    )


ENDLESS = (
    "{% for m in messages %}{{ '\n\nHuman: ' if m.role == 'user' else '\n\nAssistant: ' }}"
    "{{ m.content }}{% endfor %}{% if add_generation_prompt %}{{ '\n\nAssistant: ' }}{% endif %}"
)


def test_a_turn_that_the_template_does_not_end_gets_the_end_token():
    tokenizer = make_tokenizer(chat_template=ENDLESS)
    assert scored(one(PAIR, tokenizer=tokenizer), tokenizer) == [" yes</s>", " no</s>"]
    chat = one({"messages": MESSAGES[1:]}, layout=layouts.DEMOS, tokenizer=tokenizer)
    assert scored(chat, tokenizer) == ["hello</s> yes</s>"]
    assert [branch.ids[-1] for branch in chat.branches] == [tokenizer.eos_token_id] * 2


def test_text_that_the_template_rendered_before_ends_at_its_stop_token():
    prompt = f"<|im_start|>user\nHi<|im_end|>\n{HEAD}"
    row = {"prompt": prompt, "completion": "yes<|im_end|>\n"}
    assert scored(one(row, layout=layouts.DEMOS)) == ["yes<|im_end|>"]
    whole = one({"text": f"{prompt}yes<|im_end|>\n"}, layout=layouts.DEMOS)
    assert CHAT.decode(whole.branches[0].ids).endswith("yes<|im_end|>")


def test_text_that_goes_on_after_a_stop_token_is_refused():
    row = {"prompt": "Hi", "completion": "yes<|im_end|>\n<|im_start|>user\nno<|im_end|>"}
    with pytest.raises(
        UserError, match=r"'completion' goes on after the stop token '<\|im_end\|>'"
    ):
        one(row, layout=layouts.DEMOS)


def test_a_stop_token_typed_inside_an_answer_is_refused():
    with pytest.raises(
        UserError, match=r"the answer holds the stop token '<\|im_end\|>', and goes"
    ):
        one(PAIR | {"chosen": [bot("yes<|im_end|>no")]})


def test_control_tokens_typed_by_a_user_are_context_and_counted():
    typed = f"no<|im_end|>\n{HEAD}grey<|im_end|>"
    data = load(PAIR, PAIR | {"prompt": [user(typed)]})
    assert scored(data[1]) == SCORED
    assert data.counts.noted["control tokens in the text"] == 1


def test_a_control_token_at_the_start_of_a_text_is_counted_and_bos_is_not():
    typed = {"prompt": "<|im_start|>Hi", "chosen": " yes", "rejected": " no"}
    data = load(typed | {"prompt": "<s>Hi"}, typed)
    assert data.counts.noted == {"control tokens in the text": 1}
    assert data.counts.first["control tokens in the text"] == "row 2"


def test_a_new_name_for_a_column_that_nothing_reads_is_refused():
    settings = Data(path="rows", columns={"promt": "q"})
    rows = [("row 1", {"q": "Hi", "chosen": "yes", "rejected": "no"})]
    with pytest.raises(UserError, match=r"data\.columns: no column 'promt' is read; did you mean"):
        make_examples(settings, rows, "rows", Encoder(CHAT), layouts.PAIRS, seed=0)


# Roles


def test_an_unknown_role_is_refused_with_the_setting_that_renames_it():
    message = r"row 1: 'chosen'\[0\]: unknown role 'bot'; .* data.roles: \{bot: assistant\}"
    row = PAIR | {"chosen": [{"role": "bot", "content": "yes"}]}
    with pytest.raises(UserError, match=message):
        one(row)
    assert scored(one(row, roles={"bot": "assistant"})) == SCORED


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"type": "image"}], "content has parts of type image; only text"),
        (3, "its content is 3; wanted a text"),
        (None, "has neither content nor tool calls"),
    ],
)
def test_content_that_is_no_text_is_refused(content, message):
    with pytest.raises(UserError, match=rf"row 1: 'chosen'\[0\]:? ?.*{message}"):
        one(PAIR | {"chosen": [bot(content)]})


def test_content_in_parts_is_joined():
    parts = [{"type": "text", "text": "ye"}, {"type": "text", "text": "s"}]
    assert scored(one(PAIR | {"chosen": [bot(parts)]})) == SCORED


def test_a_template_that_shows_content_only_in_parts_gets_it_so():
    template = CHATML.replace(
        "{{ m['content'] }}", "{% for p in m['content'] %}{{ p.text }}{% endfor %}"
    )
    tokenizer = make_tokenizer(chat_template=template, eos_token=END)
    assert scored(one(PAIR, tokenizer=tokenizer), tokenizer) == SCORED


# Columns


def test_columns_are_renamed_by_a_setting():
    row = {"question": [user("Hi")], "good": [bot("yes")], "bad": [bot("no")]}
    names = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    settings = Data(path="rows", columns=names)
    encoder = Encoder(CHAT, settings)
    (item,) = make_examples(settings, [("row 1", row)], "rows", encoder, layouts.PAIRS, seed=0)
    assert scored(item) == SCORED


def test_a_weight_is_read_and_a_row_of_weight_0_dropped():
    data = load(PAIR | {"weight": 2}, PAIR | {"weight": 0}, PAIR, PAIR | {"weight": None})
    assert [item.weight for item in data] == [2.0, 1.0, 1.0]
    assert data.counts.dropped == {"weight is 0": 1}
    with pytest.raises(UserError, match="row 1: 'weight' is -1; wanted 0 or more"):
        load(PAIR | {"weight": -1})
