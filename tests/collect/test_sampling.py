"""The rows of `sample`: prompts with the answers of a model, and what training reads in them."""

import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from lib import runs as h
from lib.checkpoints import edit_json
from lib.endpoints import KEY, endpoint

from jaxalign.collect.sampling import Asked, ids_of, open_prompter, read_prompted, sampled_rows
from jaxalign.collect.verbs import Place, sample_file
from jaxalign.core.layouts import PAIRS
from jaxalign.data.encode import Encoder
from jaxalign.data.tokenize import make_examples
from jaxalign.errors import RunError, UserError
from jaxalign.hf.tokenizer import load_tokenizer, stop_tokens
from jaxalign.language_model import LanguageModel
from jaxalign.settings import Data
from jaxalign.settings.endpoint import Endpoint
from jaxalign.settings.sample import Sample

MESH = h.one_device()
PLACE = Place(mesh=MESH, dtype="float32", say=lambda text: None)
TEMPLATE = (
    "{% if tools %}T{% endif %}{% if big %}B{% endif %}{% for m in messages %}{{ m.role[0] }}:"
    "{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
CHAT = [{"role": "user", "content": "2+2="}]
PROMPTS = [
    {"prompt": "1+1=", "answer": "2", "chosen": "2", "rejected": "no", "scores": [1, 2]},
    {"prompt": CHAT, "tools": [{"name": "f"}], "chat_template_kwargs": {"big": True}},
    {"messages": [{"role": "user", "content": "3+3="}, {"role": "assistant", "content": "6"}]},
    {"conversations": [{"from": "human", "value": "4+4="}], "n": 4, "empty": None},
]
N, MAX_NEW, SEED = 6, 4, 7
ASCII, END = 94, 257  # ids of the tokenizer: after the ASCII characters; the stop token


@pytest.fixture(scope="module")
def model(inputs, tmp_path_factory):
    """A model with a chat template; its answers are mostly ASCII, and often end by themselves."""
    folder = Path(shutil.copytree(inputs / "model", tmp_path_factory.mktemp("chats") / "model"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    edit_json(folder / "config.json", tie_word_embeddings=False)

    def untied(tensors):
        shape = tensors["model.embed_tokens.weight"].shape
        head = 0.3 * np.random.default_rng(0).normal(size=shape).astype(np.float32)
        head[ASCII:END] *= 0.01
        head[END] *= 4.0  # so that it has the largest or the smallest logit
        tensors["lm_head.weight"] = head

    h.edit_tensors(folder, untied)
    return folder


def file_of(folder, rows=PROMPTS):
    h.write_rows(folder / "prompts.jsonl", rows)
    return str(folder / "prompts.jsonl")


def sampled(folder, model, rows=PROMPTS, seed=SEED, **options):
    """The rows of a file of answers, and its summary."""
    how = Sample(prompts=file_of(folder, rows), n=N, max_new=MAX_NEW, **options)
    out = folder / "data.jsonl"
    summary = sample_file(how, model, out, seed, PLACE)
    return [json.loads(line) for line in out.read_text().splitlines()], summary


@pytest.fixture(scope="module")
def answered(model, tmp_path_factory):
    """The answers to `PROMPTS`, and their summary."""
    return sampled(tmp_path_factory.mktemp("answered"), model)


def same_spelling(text):
    """Whether the tokens of an answer are the bytes of its text."""
    return "\ufffd" not in text


ANSWERS = ("responses", "finishes", "tokens", "logps", "sampler_logps", "seeds")

# Rows


def test_token_ids_are_the_drawn_tokens_with_the_stop_token(model, answered, tmp_path):
    how = Sample(prompts=file_of(tmp_path), n=N, max_new=MAX_NEW)
    sample_file(how, model, tmp_path / "data.jsonl", SEED, PLACE, ids=True)
    rows = [json.loads(line) for line in (tmp_path / "data.jsonl").read_text().splitlines()]
    tokenizer = load_tokenizer(model)
    ends = set()
    for row, same in zip(rows, answered[0], strict=True):
        drawn = row.pop("token_ids")
        assert row == same
        assert list(map(len, drawn)) == row["tokens"]
        for ids, end, text in zip(drawn, row["finishes"], row["responses"], strict=True):
            ends.add(ids[-1] == END)
            assert (ids[-1] == END) == (end == "stop")
            assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert ends == {True, False}


def test_a_row_has_the_answer_columns_with_an_entry_for_each_answer(answered):
    rows, _ = answered
    for row in rows:
        assert all(len(row[name]) == N for name in ANSWERS)
        assert set(map(type, row["responses"] + row["finishes"])) == {str}
        assert set(map(type, row["tokens"] + row["seeds"])) == {int}
        assert all(a < 0 for a in row["logps"] + row["sampler_logps"])


def test_other_columns_are_kept_and_columns_about_answers_are_renamed(answered):
    first, _, _, last = answered[0]
    kept = {k: v for k, v in first.items() if k not in ANSWERS}
    assert kept == {
        "prompt": "1+1=",
        "answer": "2",
        "given_chosen": "2",
        "given_rejected": "no",
        "given_scores": [1, 2],
    }
    assert {k: v for k, v in last.items() if k not in ANSWERS} == {
        "prompt": [{"from": "human", "value": "4+4="}],
        "n": 4,
    }


def test_no_column_of_earlier_answers_remains_under_its_name(model, tmp_path):
    old = {name: ["x"] for name in ANSWERS} | {"scores": [0.5], "scores_length": [3]}
    (row,), _ = sampled(tmp_path, model, [{"prompt": "1+1="} | old])
    assert {k for k in row if not k.startswith("given_")} == {"prompt", *ANSWERS}
    assert {k: row[f"given_{k}"] for k in old} == old


def test_the_columns_of_the_chat_template_are_kept(answered):
    _, second, third, _ = answered[0]
    assert second["tools"] == [{"name": "f"}]
    assert second["chat_template_kwargs"] == {"big": True}
    assert third["prompt"] == [{"role": "user", "content": "3+3="}]


def test_every_answer_has_a_seed_of_its_own(answered):
    assert [seed for row in answered[0] for seed in row["seeds"]] == [
        SEED + i for i in range(N * len(PROMPTS))
    ]


def test_an_answer_is_drawn_again_from_its_seed(answered, model, tmp_path):
    row = answered[0][2]
    (again,), _ = sampled(tmp_path, model, [{"prompt": row["prompt"]}], seed=row["seeds"][0])
    assert again["responses"] == row["responses"]
    assert again["logps"] == pytest.approx(row["logps"], rel=1e-4)


def test_an_answer_is_cut_or_ends_with_a_counted_stop_token(answered):
    seen = Counter()
    for row in answered[0]:
        for text, finish, tokens in zip(
            row["responses"], row["finishes"], row["tokens"], strict=True
        ):
            seen[finish] += 1
            assert tokens == MAX_NEW or finish == "stop"
            if same_spelling(text):
                assert tokens == len(text.encode()) + (finish == "stop")
    assert seen["stop"] > 2
    assert seen["length"] > 2


def test_the_summary_counts_the_answers(answered):
    rows, summary = answered
    tokens = sum(sum(row["tokens"]) for row in rows)
    cut = sum(row["finishes"].count("length") for row in rows)
    assert summary.pop("tokens/s") > 0
    assert summary == {
        "prompts": len(rows),
        "answers": N * len(rows),
        "tokens": tokens,
        "without_end": cut / (N * len(rows)),
        "drawn": tokens,
    }


def test_parts_do_not_change_the_rows(answered, model, tmp_path):
    rows, _ = sampled(tmp_path, model, part=1)
    for row, whole in zip(rows, answered[0], strict=True):
        assert row["responses"] == whole["responses"]
        assert row["seeds"] == whole["seeds"]
        assert row["logps"] == pytest.approx(whole["logps"], rel=1e-4)


# What training reads


def test_training_reads_the_prompt_that_was_answered(answered, model):
    encoder = open_prompter(Sample(prompts="-"), model, None)
    how = Sample(prompts="-")
    for row, raw in zip(answered[0], PROMPTS, strict=True):
        pair = {k: row[k] for k in ("prompt", "tools", "chat_template_kwargs") if k in row}
        pair |= dict(
            zip(
                ("chosen", "rejected"),
                [text for text in dict.fromkeys(row["responses"]) if text.strip()],
                strict=False,
            )
        )
        (example,) = make_examples(DATA, [("row", pair)], "rows", trainer(model), PAIRS, seed=0)
        (asked,) = ids_of(prompted(raw), encoder, how)
        np.testing.assert_array_equal(example.prompt, asked)


def test_the_tools_and_the_values_of_a_row_are_in_its_prompt(model):
    encoder = open_prompter(Sample(prompts="-"), model, None)
    texts = [encoder.text(ids) for ids in ids_of(prompted(*PROMPTS), encoder, Sample(prompts="-"))]
    assert texts == ["1+1=", "TBu:2+2=a:", "u:3+3=a:", "u:4+4=a:"]


def test_the_values_of_the_settings_are_in_the_prompt_of_a_chat(model):
    how = Sample(prompts="-", chat_template_kwargs={"big": True})
    encoder = open_prompter(how, model, None)
    texts = [encoder.text(ids) for ids in ids_of(prompted(*PROMPTS), encoder, how)]
    assert texts == ["1+1=", "TBu:2+2=a:", "Bu:3+3=a:", "Bu:4+4=a:"]


def test_training_computes_the_log_probabilities_of_the_row(answered, model):
    plain = [row for row in answered[0] if "tools" not in row]
    found = [
        (chat(row["prompt"]), text, logp)
        for row in plain
        for text, finish, logp in zip(row["responses"], row["finishes"], row["logps"], strict=True)
        if finish == "stop" and text.strip() and same_spelling(text)
    ]
    assert len(found) > 2
    prompts, texts, logps = map(list, zip(*found, strict=True))
    computed = LanguageModel(model, MESH, "float32").logp(prompts, texts)
    np.testing.assert_allclose(logps, computed, rtol=1e-4)


def test_at_temperature_1_the_sampler_is_the_model(answered):
    for row in answered[0]:
        assert row["sampler_logps"] == pytest.approx(row["logps"], rel=1e-5)


def chat(prompt):
    """A prompt as Python gives it."""
    if isinstance(prompt, str):
        return prompt
    return [{"role": "user", "content": m.get("content", m.get("value"))} for m in prompt]


DATA = Data(path="rows", max_length=64, max_prompt=48, min_response=1)


def trainer(folder):
    tokenizer = load_tokenizer(folder)
    return Encoder(tokenizer, DATA, stops=stop_tokens(folder, tokenizer))


def prompted(*rows):
    """The prompts of some rows."""
    with tempfile.TemporaryDirectory() as folder:
        return read_prompted(Sample(prompts=file_of(Path(folder), rows)), 0)


# The choice of prompts


def chosen(folder, seed, **options):
    rows = [{"prompt": str(i)} for i in range(20)]
    how = Sample(prompts=file_of(folder, rows), **options)
    return [int(found.row.given) for found in read_prompted(how, seed)]


def test_the_seed_chooses_the_prompts_in_the_order_of_the_file(tmp_path):
    first, second = chosen(tmp_path, 0, limit=5), chosen(tmp_path, 1, limit=5)
    assert first == chosen(tmp_path, 0, limit=5) == sorted(set(first))
    assert len(first) == len(second) == 5
    assert first != second


def test_without_a_limit_every_prompt_is_answered(tmp_path):
    assert chosen(tmp_path, 3) == chosen(tmp_path, 3, limit=20) == list(range(20))


# An endpoint


def asked(folder, url, rows, n=2, **options):
    served = Endpoint(endpoint=url, model="m", cache=str(folder / "cache.jsonl"), attempts=1)
    how = Sample(prompts=file_of(folder, rows), n=n, endpoint=served, **options)
    prompts = read_prompted(how, 0)
    return sampled_rows(prompts, Asked(how, SEED), 3)


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.mark.usefixtures("key")
def test_an_endpoint_answers_each_prompt_n_times(tmp_path):
    with endpoint(lambda body, _: [f"a{i}" for i in range(body["n"])]) as served:
        rows = asked(
            tmp_path, served.url, [{"prompt": "x", "gold": 1}, {"prompt": CHAT}], top_p=0.9
        )
    answers = {"responses": ["a0", "a1"], "finishes": ["stop", "stop"]}
    assert rows == [{"prompt": "x", "gold": 1} | answers, {"prompt": CHAT} | answers]
    assert sorted(served.bodies, key=lambda body: body["seed"]) == [
        {
            "model": "m",
            "messages": messages,
            "n": 2,
            "temperature": 1.0,
            "top_p": 0.9,
            "max_tokens": 512,
            "seed": SEED + 3 + i,
        }
        for i, messages in enumerate([[{"role": "user", "content": "x"}], CHAT])
    ]


@pytest.mark.usefixtures("key")
def test_an_endpoint_that_gives_fewer_answers_is_a_failure(tmp_path):
    with endpoint(lambda body, _: ["a"]) as served:  # noqa: SIM117
        with pytest.raises(RunError, match=r"line 1: the endpoint gave 1 answers; wanted 2"):
            asked(tmp_path, served.url, [{"prompt": "x"}])


@pytest.mark.parametrize("column", ["tools", "chat_template_kwargs"])
def test_a_column_that_an_endpoint_cannot_get_is_refused(tmp_path, column):
    rows = [{"prompt": CHAT}, PROMPTS[1] | {"tools": None, "chat_template_kwargs": None}]
    rows[1] |= {column: PROMPTS[1][column]}
    with pytest.raises(
        UserError, match=rf"line 2: has '{column}', .*not sent to an endpoint; drop"
    ):
        asked(tmp_path, "http://localhost:1", rows)


# Mistakes


@pytest.mark.parametrize("name", ["top_k", "chat_template", "chat_template_kwargs", "model"])
def test_an_option_that_an_endpoint_does_not_have_is_refused(tmp_path, name):
    value = {"top_k": 3, "chat_template_kwargs": {"x": 1}}.get(name, "x")
    how = Sample(prompts="-", endpoint=Endpoint(endpoint="http://x", model="m"), **{name: value})
    with pytest.raises(UserError, match=f"^sample.{name}: .*(no such option|not both)"):
        sample_file(how, None, tmp_path / "data.jsonl", 0, PLACE)


WRONG = {
    "no prompts": ([], {}, r"prompts\.jsonl: has no prompts; give it at least one"),
    "too few prompts": (
        [{"prompt": "x"}],
        {"limit": 2},
        r"prompts\.jsonl: has 1 prompts, fewer than limit 2; lower it",
    ),
    "no column": ([{"question": "x"}], {}, "line 1: no 'prompt'; the columns are 'question'"),
    "one column twice": (
        [{"prompt": "x", "chosen": "a", "given_chosen": "b"}],
        {},
        "line 1: has both 'chosen' and 'given_chosen'; drop one of them",
    ),
    "a long prompt": (
        [{"prompt": "1"}, {"prompt": "1" * 61}],
        {},
        "line 2: 61 tokens and max_new 4 make 65, more than the model's 64 positions",
    ),
    "an empty prompt": ([{"prompt": ""}], {}, "line 1 is empty; give it at least one token"),
}


@pytest.mark.parametrize(("rows", "options", "message"), WRONG.values(), ids=WRONG)
def test_prompts_that_cannot_be_answered_are_refused(model, tmp_path, rows, options, message):
    with pytest.raises(UserError, match=message):
        sampled(tmp_path, model, rows, **options)


def test_a_chat_without_a_template_is_refused(inputs, tmp_path):
    with pytest.raises(UserError, match="line 1: a chat needs a chat template"):
        sampled(tmp_path, inputs / "model", [{"prompt": CHAT}])
