from __future__ import annotations

import json

import pytest
from lib.tokenizers import CHATML, END, make_tokenizer

from jaxalign.core import layouts
from jaxalign.data.encode import Encoder
from jaxalign.data.tokenize import load_examples
from jaxalign.errors import UserError
from jaxalign.settings import Data

CHAT = make_tokenizer(chat_template=CHATML, eos_token=END)


def user(text):
    return [{"role": "user", "content": text}]


def assistant(text):
    return [{"role": "assistant", "content": text}]


def one(folder, tokenizer=CHAT, layout=layouts.PAIRS, **record):
    path = folder / "data.jsonl"
    path.write_text(json.dumps(record))
    settings = Data(path=str(path))
    (item,) = load_examples(settings, str(path), "train", Encoder(tokenizer), layout, seed=0)
    return item


def texts(item, tokenizer=CHAT):
    return [tokenizer.decode(ids) for ids in (item.prompt, *(b.ids for b in item.branches))]


def test_messages_are_rendered_with_the_template_and_the_answer_is_the_response(tmp_path):
    item = one(tmp_path, prompt=user("Hi"), chosen=assistant("yes"), rejected=assistant("no"))
    assert texts(item) == [
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        "yes<|im_end|>",
        "no<|im_end|>",
    ]


def test_a_template_gets_no_second_bos(tmp_path):
    tokenizer = make_tokenizer(adds_bos=True, chat_template="<s>" + CHATML)
    item = one(tmp_path, tokenizer, layouts.DEMOS, prompt=user("Hi"), completion=assistant("yes"))
    assert item.prompt.tolist().count(tokenizer.bos_token_id) == 1


def test_a_template_without_bos_is_left_without(tmp_path):
    tokenizer = make_tokenizer(adds_bos=True, chat_template=CHATML)
    item = one(tmp_path, tokenizer, layouts.DEMOS, prompt=user("Hi"), completion=assistant("yes"))
    assert tokenizer.bos_token_id not in item.prompt


def test_a_template_gets_no_eos(tmp_path):
    tokenizer = make_tokenizer(chat_template=CHATML)
    item = one(tmp_path, tokenizer, layouts.DEMOS, prompt=user("Hi"), completion=assistant("yes"))
    assert texts(item, tokenizer)[1] == "yes<|im_end|>"


def test_a_template_that_rewrites_the_last_turn_keeps_the_common_tokens_as_prompt(tmp_path):
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }} {% if m['role'] == 'assistant' %}"
        "so {% endif %}{{ m['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
    )
    tokenizer = make_tokenizer(chat_template=template)
    item = one(tmp_path, tokenizer, layouts.DEMOS, prompt=user("Hi"), completion=assistant("yes"))
    assert texts(item, tokenizer)[1].strip() == "so yes<|im_end|>"


def test_a_begun_turn_of_the_assistant_is_continued(tmp_path):
    prompt = user("Hi") + assistant("yes")
    item = one(tmp_path, layout=layouts.DEMOS, prompt=prompt, completion=assistant("no"))
    assert texts(item) == [
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nyes",
        "no<|im_end|>",
    ]


def test_messages_need_a_chat_template(tmp_path):
    with pytest.raises(
        UserError, match="line 1: chat template: got messages, but the tokenizer has none"
    ):
        one(
            tmp_path,
            make_tokenizer(),
            layouts.DEMOS,
            prompt=user("Hi"),
            completion=assistant("yes"),
        )


def test_messages_that_the_template_refuses_are_told_with_their_roles(tmp_path):
    tokenizer = make_tokenizer(chat_template="{{ raise_exception('no system role') }}")
    prompt = [{"role": "system", "content": "be nice"}]
    message = "line 1: chat template: no system role; got roles system, assistant"
    with pytest.raises(UserError, match=message):
        one(tmp_path, tokenizer, layouts.DEMOS, prompt=prompt, completion=assistant("yes"))


def test_a_rationale_answers_a_later_turn_of_the_user(tmp_path):
    pair = {"chosen": assistant("yes"), "rejected": assistant("no")}
    item = one(tmp_path, layout=layouts.RATIONALES, prompt=user("Hi"), rationale="true", **pair)
    scored = [CHAT.decode(item.scored(r)) for r in range(item.responses)]
    assert scored == ["yes<|im_end|>", "no<|im_end|>", "true<|im_end|>"]
    assert CHAT.decode([*item.prompt, *item.branches[2].ids]) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
        "<|im_start|>user\nAnother answer is:\nno\n\nWhy is the first answer better?<|im_end|>\n"
        "<|im_start|>assistant\ntrue<|im_end|>"
    )
