"""Damaged chat templates: chats as the template writes them, or refused in words."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lib import runs
from lib.chat_templates import CHATS, FOLDER, NAMES, TOKENS
from lib.damage import odd_text
from lib.fuzz import fuzz, limited
from lib.tokenizers import make_tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from jaxalign.core import layouts
from jaxalign.data.encode import Encoder
from jaxalign.data.spans import Chat
from jaxalign.data.template import ChatTemplate
from jaxalign.data.tokenize import load_examples
from jaxalign.settings import Data

pytestmark = pytest.mark.slow

WORDS = (
    "{{ 1 + 'a' }}",
    "{{ 1 / 0 }}",
    "{{ 'x' * 10**9 }}",
    "{{ 10**10**10 }}",
    "{{ [0] * 10**9 }}",
    "{% for a in range(10**9) %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "{% set n = namespace(x='ab') %}{% for a in range(99) %}{% set n.x = n.x * 2 %}{% endfor %}",
    "{% include 'x' %}",
    "{% extends 'x' %}",
    "{% import 'os' as os %}",
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.append(1) }}",
    "{{ messages.__init__.__globals__ }}",
    "{{ raise_exception('no') }}",
    "{{ strftime_now('%' * 99999) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ 'x'.center(10**9) }}",
    "{{ messages | tojson(indent=10**9) }}",
    "{{ messages | map('upper') | list }}",
    "{{ lipsum(10**6) }}",
    "{{ cycler(1, 2).next() }}",
    "{{ m }}",
    "{% if x is defined %}",
    "{% endif %}",
    "{% endfor %}",
    "{% generation %}",
    "{% endgeneration %}",
    "{% break %}",
    "{{",
    "}}",
    "{#",
    "\x1b[2J",
    "\ufdd0",
    "\ud800",
    "<|im_end|>",
    "</s>",
)


@st.composite
def templates(draw):
    """(text of a template, prompt, response)."""
    text = (FOLDER / f"{draw(st.sampled_from(NAMES))}.jinja").read_text()
    return draw(odd_text(text, WORDS)), *draw(st.sampled_from(list(CHATS.values())))


def test_a_damaged_template_writes_the_chat_or_is_refused(tmp_path):
    path = str(tmp_path / "rows.jsonl")
    data = Data(path=path, max_prompt=10**6, max_length=2 * 10**6)  # nothing is cut

    @fuzz(0.1)
    @given(templates())
    def check(case):
        template, prompt, response = case
        runs.write_rows(tmp_path / "rows.jsonl", [{"prompt": prompt, "completion": response}])
        with limited() as refused:
            tokenizer = make_tokenizer(chat_template=template)
            encoder = Encoder(tokenizer, stops=[tokenizer.eos_token_id])
            (ids,) = encoder.prompts([("a prompt", Chat(prompt))])
            rows = load_examples(data, path, "train", encoder, layouts.DEMOS, seed=0)
        # transformers computes constants when it compiles, used or not; what else passes is small.
        if refused or re.search(r"\*\*|[0-9]{9}", template):
            return
        assert tokenizer.decode(ids) == theirs(template, prompt, add_generation_prompt=True)
        for row in rows:
            for branch in row.branches:
                text = tokenizer.decode([*row.prompt, *branch.ids])
                text = text.removesuffix(tokenizer.eos_token)
                # An answer is in its place in the chat, or follows what a sampler is given.
                befores = [[*prompt, *response[:k]] for k in range(len(response) + 1)]
                openings = [theirs(template, x, add_generation_prompt=True) for x in befores[:-1]]
                assert any(theirs(template, x).startswith(text) for x in befores[1:]) or any(
                    text.startswith(opening) for opening in openings
                )

    check()


def theirs(template, chat, **options):
    """What transformers writes, given texts as the template wants them."""
    if ChatTemplate(template, TOKENS).parts:
        chat = [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in chat]
    (text,), _ = render_jinja_template([chat], chat_template=template, **TOKENS, **options)
    return text
