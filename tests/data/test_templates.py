"""The original chat templates of forty model lines, which the package trl ships."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lib.chat_templates import (
    CALL,
    CHATS,
    FOLDER,
    NAMES,
    RESULT,
    SYSTEM,
    TOKENS,
    bot,
    drafter,
    page,
    scored,
    user,
)
from transformers.utils.chat_template_utils import render_jinja_template

from jaxalign.data.spans import Chat
from jaxalign.data.template import ChatTemplate, TemplateError

OPENED = ("deepseek_r1_distill", "deepseekv3", *(n for n in NAMES if n.startswith("nemotron")))
"""Templates whose generation prompt opens a `<think>` that their answers lack."""
TRAINING = [name for name in NAMES if (FOLDER / f"{name}_training.jinja").exists()]


def theirs(name, chat, **options):
    """What transformers makes of a chat by the training variant: the text and its marks."""
    source = (FOLDER / f"{name}_training.jinja").read_text()
    if drafter(name).template.parts:
        chat = [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in chat]
    texts, marks = render_jinja_template(
        [chat], chat_template=source, return_assistant_tokens_mask=True, **TOKENS, **options
    )
    return texts[0], marks[0] if marks else []


def marked(name, chat, k):
    """The marked text of turn k after the generation prompt, up to the first stop token."""
    opening, _ = theirs(name, chat[:k], add_generation_prompt=True)
    text, marks = theirs(name, chat[: k + 1])
    assert text.startswith(opening)
    marks = [(max(a, len(opening)), b) for a, b in marks if b > len(opening)]
    found, after = "".join(text[a:b] for a, b in marks), text[marks[-1][1] :]
    stops = drafter(name).stops
    ends = [found.find(stop) + len(stop) for stop in stops if stop in found]
    closing = "" if ends else next((stop for stop in stops if after.startswith(stop)), "")
    return found[: min(ends, default=None)] + closing


@pytest.mark.parametrize("name", TRAINING)
@pytest.mark.parametrize("case", CHATS)
def test_scored_text_is_what_the_training_variant_marks(name, case):
    prompt, response = CHATS[case]
    if (name, case) in refused():
        with pytest.raises(TemplateError):
            scored(name, prompt, response)
        return
    chat = [*prompt, *response]
    turns = [k for k in range(len(prompt), len(chat)) if chat[k]["role"] == "assistant"]
    assert scored(name, prompt, response) == [marked(name, chat, k) for k in turns]


WITHOUT_TOOLS = (
    *("cohere", "cohere2", "deepseek_r1_distill", "gemma", "gemma3", "idefics3", "lfm2", "llama3"),
    *("llava_next", "phi3", "phi3_5", "qwen2_5_vl", "smolvlm"),
)
WITHOUT_REASONING = (
    *WITHOUT_TOOLS,
    *("gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4", "lfm2_v2", "llama3_1", "llama3_2"),
    *("qwen2_5", "qwen3_instruct_2507", "qwen3_vl", "qwen3_5_nothink"),
)


@functools.cache
def refused():
    """(template, chat) that are refused, by what the templates leave out."""
    found = {(name, case) for name in OPENED for case in CHATS if case != "reasoning"}
    found |= {(name, "reasoning") for name in ("deepseek_r1_distill", "deepseekv3")}
    found |= {(name, "tool") for name in WITHOUT_TOOLS}
    found |= {(name, "reasoning") for name in WITHOUT_REASONING}
    return found | {("gemma", "three")}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", CHATS)
def test_a_template_that_leaves_something_out_is_refused_and_no_other(name, case):
    prompt, response = CHATS[case]
    if (name, case) not in refused():
        turns = scored(name, prompt, response)
        assert len(turns) == sum(turn["role"] == "assistant" for turn in response)
        stops = drafter(name).stops
        for turn in turns:
            assert turn.endswith(stops)
            assert sum(turn.count(stop) for stop in stops) == 1
        return
    with pytest.raises(TemplateError, match=r"leaves out|generation prompt|System role"):
        scored(name, prompt, response)


@pytest.mark.parametrize("opening", ["match", "rendered"])
@pytest.mark.parametrize("name", OPENED)
def test_the_setting_says_what_precedes_an_answer_where_the_prompt_opens_it(name, opening):
    (draft,) = drafter(name, opening).drafts(Chat([user("Q1")]), [bot("A1")])
    ((start, stop),) = draft.spans
    asked = drafter(name).prompt(Chat([user("Q1")]))
    assert draft.text[start:stop].removeprefix("</think>").startswith("A1")
    assert (draft.text[:start] == asked) == (opening == "match")
    assert asked.startswith(draft.text[:start])


@pytest.mark.parametrize("name", NAMES)
def test_a_template_renders_as_in_transformers(name):
    source = (FOLDER / f"{name}.jinja").read_text()
    template = ChatTemplate(source, TOKENS)
    for prompt, response in CHATS.values():
        chat = [*prompt, *response]
        for opens in (False, True):
            try:
                wanted = render_jinja_template(
                    [chat],
                    chat_template=source,
                    add_generation_prompt=opens,
                    tools=[CALL],
                    **TOKENS,
                )[0][0]
            except Exception:
                continue
            found = template._render(chat, opens=opens, given={"tools": [CALL]}).text
            assert found == wanted


def test_the_documentation_shows_the_scored_text():
    shown = Path(__file__).parents[2] / "docs" / "chat-templates.md"
    assert shown.read_text(encoding="utf-8") == page()


# Random conversations

TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="§"), max_size=30),
    st.sampled_from(
        ["", " ", "🙂👍🏽", "<think>", "</s>", "<|im_end|>", "<|im_start|>", "long " * 99]
    ),
)


@st.composite
def conversations(draw):
    turns = [SYSTEM] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns.append(user("u§" + draw(TEXT) + "§u"))
        if draw(st.booleans()):
            turns += [bot(None, tool_calls=[CALL]), RESULT | {"content": "t§" + draw(TEXT) + "§t"}]
        turns.append(bot(draw(TEXT)))
    return turns


@given(conversations(), st.sampled_from(NAMES))
@settings(max_examples=200, deadline=None)
def test_no_turn_of_another_is_scored_and_each_answer_ends_with_the_one_stop_token(chat, name):
    first = next(i for i, turn in enumerate(chat) if turn["role"] == "assistant")
    try:
        turns = scored(name, chat[:first], chat[first:])
    except TemplateError:
        return
    stops = drafter(name).stops
    for turn in turns:
        assert not re.search("u§|§u|t§|§t", turn)
        assert turn.endswith(stops)
        assert sum(turn.count(stop) for stop in stops) == 1
