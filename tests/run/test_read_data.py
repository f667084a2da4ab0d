"""The data of a stage: the same at every start of its run."""

import io
import json

import pytest
from lib import runs as h
from lib.checkpoints import write_tokenizer
from lib.tokenizers import make_tokenizer

from jaxalign.console import Terminal
from jaxalign.core.layouts import PAIRS
from jaxalign.data.encode import Encoder
from jaxalign.data.spans import Chat
from jaxalign.data.tokenize import load_examples
from jaxalign.errors import UserError
from jaxalign.hf.tokenizer import load_tokenizer
from jaxalign.run import train
from jaxalign.run.read_data import make_encoder, show_data
from jaxalign.settings import Data

CLOCK = "{{ strftime_now('%Y-%m-%d') }}{% for m in messages %}{{ m.content }}</s>{% endfor %}"


def test_the_clock_of_a_template_shows_the_date_on_which_the_run_began(tmp_path):
    inputs = h.write_inputs(tmp_path / "inputs")
    write_tokenizer(inputs / "model")
    (inputs / "model/chat_template.jinja").write_text(CLOCK)
    tokenizer = load_tokenizer(inputs / "model")
    recipe = h.recipe(inputs, tmp_path / "run", "sft")
    train.claim(recipe)
    (tmp_path / "run/began.txt").write_text("2025-03-09")
    train.claim(recipe)
    data = recipe.stages["sft"].data
    (prompt,) = make_encoder(recipe, data, inputs / "model", tokenizer).prompts(
        [("prompt", Chat([{"role": "user", "content": "1"}]))]
    )
    assert tokenizer.decode(prompt).startswith("2025-03-09")


def test_a_date_that_is_none_is_refused(tmp_path):
    inputs = h.write_inputs(tmp_path / "inputs")
    recipe = h.recipe(inputs, tmp_path / "run", "sft")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/began.txt").write_text("soon")
    with pytest.raises(UserError, match=r"began\.txt: got 'soon'; wanted a date"):
        h.prepared(recipe, "sft", h.one_device())


def test_the_first_examples_name_each_response_without_colors(tmp_path):
    path = tmp_path / "a.jsonl"
    row = {"prompt": "Hi", "chosen": " yes \x1b[2J", "rejected": " no"}
    path.write_text(json.dumps(row) + "\n")
    encoder = Encoder(make_tokenizer())
    examples = load_examples(Data(path=str(path)), str(path), "", encoder, PAIRS, seed=0)
    out = io.StringIO()
    show_data(Terminal(file=out, width=100), "dpo", [], examples, encoder, PAIRS.responses)
    assert out.getvalue().splitlines()[-3:] == [
        "prompt: Hi",
        r"chosen: ⟦ yes \x1b[2J</s>⟧",
        "rejected: ⟦ no</s>⟧",
    ]
