import gzip
import json

import pytest
from lib import runs as h
from lib.rows import one

from jaxalign.collect.sample import Sampling, answered, read_prompts, sample
from jaxalign.core import layouts
from jaxalign.data.ask import prompt_row
from jaxalign.errors import UserError
from jaxalign.hf.tokenizer import load_tokenizer, stop_tokens

MESH = h.one_device()
PROMPTS = ["1+1=", "ähm, 2+2=", "3+3="]
HOW = {"max_new": 8, "dtype": "float32"}
LINES = "".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return h.write_inputs(tmp_path_factory.mktemp("inputs")) / "model"


def sampling(**options):
    return Sampling(model="", **(HOW | options))


def read(**options):
    return [row.prompt for row in read_prompts(sampling(**options))]


def answers(folder, prompts, **options):
    rows = [prompt_row({"prompt": p}, f"prompts[{i}]") for i, p in enumerate(prompts)]
    return sample(folder, sampling(**options), MESH, rows, h.QUIET).texts


# Prompts


def test_one_prompt_is_text():
    assert read(prompt="1+1=") == ["1+1="]


@pytest.mark.parametrize(
    "name, data",
    {
        "prompts.jsonl": LINES.encode(),
        "prompts.jsonl.gz": gzip.compress(LINES.encode()),
        "prompts.txt": "\n".join(PROMPTS).encode(),
        "marked.txt": "\r\n".join(PROMPTS).encode("utf-8-sig"),
        "blank.jsonl": LINES.replace("\n", "\n\n").encode(),
    }.items(),
)
def test_a_file_of_prompts_is_read(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    assert read(prompts=str(tmp_path / name)) == PROMPTS


@pytest.mark.parametrize("inside", ["\f", "\x1c", "\u2028"])
def test_only_a_line_break_ends_a_prompt(tmp_path, inside):
    (tmp_path / "prompts.txt").write_text(f"1{inside}+1=\n", encoding="utf-8")
    assert read(prompts=str(tmp_path / "prompts.txt")) == [f"1{inside}+1="]


@pytest.mark.parametrize(("name", "data"), [("none.txt", " \n\n"), ("none.jsonl", "")])
def test_a_file_without_prompts_is_refused(tmp_path, name, data):
    (tmp_path / name).write_text(data)
    with pytest.raises(UserError, match=f"--prompts: .*{name} has no prompts"):
        read(prompts=str(tmp_path / name))


def test_an_answered_row_is_asked_again_as_it_was():
    given = {"prompt": [{"role": "user", "content": "1+1="}], "tools": [{"name": "add"}]}
    row = prompt_row(given | {"chat_template_kwargs": {"x": 1}}, "here")
    assert prompt_row(answered(row, "2"), "here") == row
    assert answered(prompt_row({"prompt": "1+1=", "tools": []}, "here"), "2") == {
        "prompt": "1+1=",
        "answer": "2",
    }


def test_answered_rows_are_demonstrations_with_a_name_for_the_answer(tmp_path):
    asked = [{"role": "user", "content": "1+1="}]
    row = answered(prompt_row({"prompt": asked}, "here"), "2")
    record = one(tmp_path, row, layouts.DEMOS, columns={"completion": "answer"})
    assert record.prompt == asked
    assert record.responses == ([{"role": "assistant", "content": "2"}],)


def test_a_prompt_may_be_messages(tmp_path):
    messages = [{"role": "user", "content": "1+1="}]
    h.write_rows(tmp_path / "prompts.jsonl", [{"prompt": messages}])
    assert read(prompts=str(tmp_path / "prompts.jsonl")) == [messages]


@pytest.mark.parametrize("options", [{}, {"prompt": "a", "prompts": "b"}])
def test_one_of_prompt_and_prompts_is_wanted(options):
    with pytest.raises(UserError, match="give one of --prompt and --prompts"):
        read_prompts(sampling(**options))


def test_a_missing_file_of_prompts_is_named(tmp_path):
    with pytest.raises(UserError, match=r"--prompts: no file .*nowhere\.txt"):
        read_prompts(sampling(prompts=str(tmp_path / "nowhere.txt")))


WRONG = {
    "not JSON": '{"prompt"',
    "no prompt": '{"question": "a"}',
    "no object": '["a"]',
    "a number": '{"prompt": 3}',
    "messages without content": '{"prompt": [{"role": "user"}]}',
}


@pytest.mark.parametrize("line", WRONG.values(), ids=WRONG)
def test_a_bad_line_is_named_by_its_number_in_the_file(tmp_path, line):
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{{"prompt": "a"}}\n\n{line}\n')
    with pytest.raises(UserError, match=r"prompts\.jsonl line 3: "):
        read_prompts(sampling(prompts=str(path)))


def test_a_file_that_is_not_whole_gzip_is_named(tmp_path):
    path = tmp_path / "prompts.jsonl.gz"
    path.write_bytes(gzip.compress(LINES.encode())[:-8])
    with pytest.raises(UserError, match=r"prompts\.jsonl\.gz"):
        read_prompts(sampling(prompts=str(path)))


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("ähm".encode("latin-1"))
    with pytest.raises(UserError, match=r"prompts\.txt"):
        read_prompts(sampling(prompts=str(path)))


# Answers


def test_every_prompt_gets_an_answer_without_special_tokens(model):
    got = answers(model, PROMPTS)
    assert len(got) == len(PROMPTS)
    assert all("<|" not in text for text in got)


def test_greedy_answers_do_not_depend_on_the_seed_and_draws_do(model):
    assert answers(model, PROMPTS, temperature=0.0) == answers(
        model, PROMPTS, temperature=0.0, seed=1
    )
    assert answers(model, PROMPTS) == answers(model, PROMPTS)
    assert answers(model, PROMPTS) != answers(model, PROMPTS, seed=1)


def test_messages_without_a_chat_template_are_refused(model):
    with pytest.raises(UserError, match="chat template"):
        answers(model, [[{"role": "user", "content": "1+1="}]])


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
@pytest.mark.parametrize(("named", "want"), [([3, 4], (3, 4, 257)), (5, (5, 257)), (None, (257,))])
def test_stop_tokens_are_eos_and_those_of_either_configuration(model, tmp_path, name, named, want):
    (tmp_path / name).write_text(json.dumps({"eos_token_id": named}))
    assert stop_tokens(tmp_path, load_tokenizer(model)) == want


def test_a_stop_token_of_the_generation_config_ends_the_answer(model, tmp_path):
    stopping = h.copy_folder(model, tmp_path / "model")
    every = list(range(h.MODEL["vocab_size"]))
    (stopping / "generation_config.json").write_text(json.dumps({"eos_token_id": every}))
    assert answers(model, ["1+1="], temperature=0.0) != [""]
    assert answers(stopping, ["1+1="], temperature=0.0) == [""]
