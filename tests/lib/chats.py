"""Chats as rows of a data set, and their scored text with a ChatML tokenizer."""

from __future__ import annotations

from jaxalign.core import layouts
from jaxalign.data.encode import Encoder
from jaxalign.data.examples import Example
from jaxalign.data.tokenize import make_examples
from jaxalign.settings import Data

from .tokenizers import CHATML, END, make_tokenizer

CHAT = make_tokenizer(chat_template=CHATML, eos_token=END)
HEAD = "<|im_start|>assistant\n"


def user(text):
    return {"role": "user", "content": text}


def bot(text, **others):
    return {"role": "assistant", "content": text, **others}


def system(text):
    return {"role": "system", "content": text}


def load(*rows, tokenizer=CHAT, layout=layouts.PAIRS, columns=(), stops=(), **settings):
    settings = Data(path="rows", **settings)
    encoder = Encoder(tokenizer, settings, stops=stops)
    numbered = [(f"row {i}", row) for i, row in enumerate(rows, 1)]
    return make_examples(settings, numbered, "rows", encoder, layout, seed=0, columns=columns)


def scored(item: Example, tokenizer=CHAT):
    """The scored text of each response."""
    return [tokenizer.decode(item.scored(r)) for r in range(item.responses)]


def wholes(item: Example, tokenizer=CHAT):
    """Every sequence that the model reads."""
    return [tokenizer.decode([*item.prompt, *branch.ids]) for branch in item.branches]


def one(row, **options):
    (item,) = load(row, **options)
    return item


PAIR = {"prompt": [user("Hi")], "chosen": [bot("yes")], "rejected": [bot("no")]}
SCORED = ["yes<|im_end|>", "no<|im_end|>"]
