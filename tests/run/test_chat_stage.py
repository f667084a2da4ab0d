"""A stage on chats: the model stops where it was taught to, here and in transformers."""

import json

import pytest
import torch
import transformers
from lib import runs as h
from lib.checkpoints import write_tokenizer

import jaxalign

pytestmark = pytest.mark.slow

# The tokenizer's EOS is </s>; the template ends turns with another of its special tokens.
CHATML = (
    "{% for m in messages %}{{ m.role + ':' + m.content + '<|user|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
GEMMA = CHATML.replace("'<|user|>\n'", "'<pad>'")
CHAT = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]


@pytest.fixture(scope="module", params=[CHATML, GEMMA], ids=["chatml", "gemma"])
def trained(request, tmp_path_factory):
    """(what the run printed, the exported model) of a demonstration seen often."""
    folder = tmp_path_factory.mktemp("chat")
    h.write_inputs(folder)
    write_tokenizer(folder / "model")
    (folder / "model/chat_template.jinja").write_text(request.param)
    config = json.loads((folder / "model/config.json").read_text())
    (folder / "model/config.json").write_text(json.dumps(config | {"eos_token_id": 2}))
    h.write_rows(folder / "chats.jsonl", [{"messages": CHAT}] * h.BATCH)
    changes = {
        "stages__sft__data__path": f"{folder}/chats.jsonl",
        "stages__sft__steps": 30,
        "stages__sft__data__max_length": 64,
    }
    printed = h.run(h.recipe(folder, folder / "run", "sft", **changes), h.one_device())
    return printed, folder / "run/sft/model"


def test_the_stop_tokens_are_told_once_and_exported(trained):
    printed, folder = trained
    end = "<|user|>" if "<|user|>" in (folder / "chat_template.jinja").read_text() else "<pad>"
    assert printed.count("stop tokens:") == 1
    shown = "</s>, <|user|>" if end == "<|user|>" else "<pad>, </s>"
    assert f"stop tokens: {shown}" in printed
    settings = json.loads((folder / "generation_config.json").read_text())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert settings["eos_token_id"] == sorted(
        {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(end)}
    )


def test_transformers_stops_after_the_answer(trained):
    _, folder = trained
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    text = tokenizer.apply_chat_template(CHAT[:1], tokenize=False, add_generation_prompt=True)
    asked = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    answer = model.generate(asked, max_new_tokens=20, do_sample=False)[0, asked.shape[1] :]
    assert len(answer) == 2
    assert tokenizer.decode(answer[0]) == "2"


def test_generate_stops_after_the_answer(trained):
    model = jaxalign.open(trained[1], "float32")
    assert model.generate([CHAT[:1]], max_new=20, temperature=0) == ["2"]


def test_a_text_is_a_message_by_default(trained, jaxalign_command):
    how = ("--max-new", 20, "--temperature", 0, "--dtype", "float32")
    code, out, err = jaxalign_command("generate", trained[1], "--prompt", "1+1=", *how)
    assert (code, json.loads(out)) == (0, {"prompt": "1+1=", "answer": "2"})
    assert err.startswith("chat: on, the tokenizer has a chat template and the model card has")


def test_a_template_from_a_file_is_exported(trained, tmp_path):
    folder = trained[1].parents[2]
    (tmp_path / "mine.jinja").write_text(CHATML.replace("user|>", "user|> "))
    changes = {
        "stages__sft__data__path": f"{folder}/chats.jsonl",
        "stages__sft__data__chat_template": str(tmp_path / "mine.jinja"),
        "stages__sft__steps": 1,
        "stages__sft__data__max_length": 64,
    }
    h.run(h.recipe(folder, tmp_path / "run", "sft", **changes), h.one_device())
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path / "run/sft/model")
    assert exported.chat_template == (tmp_path / "mine.jinja").read_text()
