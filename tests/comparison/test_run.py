"""The files and the measures of a comparison, with models that are drawn from."""

import json
import shutil

import numpy as np
import pytest
import torch
from lib import runs as h
from lib.adapters import peft_model
from lib.checkpoints import classifier, in_torch
from lib.making import read

import jaxalign
from jaxalign.collect import verbs
from jaxalign.comparison import reference, run
from jaxalign.comparison.run import distinct_endings
from jaxalign.hf.open import open_encoder

N, PROMPTS, MAX_NEW = 3, 6, 5
HOW = {"n": N, "limit": PROMPTS, "max_new": MAX_NEW, "dtype": "float32", "by": "length"}
FILES = ("answers", "scores", "logps", "held_out")


@pytest.fixture(scope="module")
def models(inputs, tmp_path_factory):
    """Two models of the same tokenizer with other weights, in folders `old` and `new`."""
    folder = tmp_path_factory.mktemp("models")
    old, new = (shutil.copytree(inputs / "model", folder / name) for name in ("old", "new"))

    def changed(tensors):
        rng = np.random.default_rng(0)
        for name, values in tensors.items():
            tensors[name] = values + 0.02 * rng.normal(size=values.shape).astype(values.dtype)

    h.edit_tensors(new, changed)
    return old, new


def compared(models, inputs, out, **changes):
    given = HOW | {"prompts": inputs / "pairs.jsonl", "out": out} | changes
    return jaxalign.compare(models, **given)


@pytest.fixture(scope="module")
def full(models, inputs):
    """The settings of a comparison with everything."""
    return {"reference": models[0], "held_out": inputs / "held_out.jsonl"}


@pytest.fixture(scope="module")
def made(models, inputs, full, tmp_path_factory):
    """A comparison with a reference and held-out pairs, and its folder."""
    out = tmp_path_factory.mktemp("made") / "deep" / "out"
    return compared(models, inputs, out, **full), out


@pytest.fixture
def copied(made, tmp_path):
    """A copy of its folder, to change."""
    return shutil.copytree(made[1], tmp_path / "out")


@pytest.fixture
def undrawn(monkeypatch):
    """No model may draw or read."""

    def refuse(*_, **__):
        raise AssertionError("a weight was read")

    monkeypatch.setattr(verbs, "open_model", refuse)
    monkeypatch.setattr("jaxalign.collect.scorers.models.open_weights", refuse)


# Files


def test_every_model_has_its_files_with_records(made):
    out = made[1]
    names = {f"{name}.jsonl{end}" for name in FILES for end in ("", ".inputs.json")}
    assert {p.name for p in (out / "old").iterdir()} == names
    assert {p.name for p in (out / "new").iterdir()} == names
    tops = {f"comparison.{end}" for end in ("json", "csv", "html")}
    tops |= {"reference_held_out.jsonl", "reference_held_out.jsonl.inputs.json"}
    assert {p.name for p in out.iterdir()} == {"old", "new"} | tops


def test_all_models_answer_the_same_prompts_with_the_same_seeds(made):
    old, new = (read(made[1] / name / "answers.jsonl") for name in ("old", "new"))
    for name in ("prompt", "seeds"):
        assert [row[name] for row in old] == [row[name] for row in new]
    assert [row["responses"] for row in old] != [row["responses"] for row in new]
    assert len(old) == PROMPTS


def test_a_second_call_draws_nothing_and_gives_the_same(made, models, inputs, full, undrawn):
    first, out = made
    assert compared(models, inputs, out, **full) == first


def test_a_killed_call_loses_one_file_of_one_part(
    made, models, inputs, full, tmp_path, monkeypatch
):
    whole, begun = verbs.sampled_rows, []

    def stop(*args):
        begun.append(args)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return whole(*args)

    with monkeypatch.context() as patched:
        patched.setattr(verbs, "sampled_rows", stop)
        with pytest.raises(KeyboardInterrupt):
            compared(models, inputs, tmp_path / "out", **full)
    kept = tmp_path / "out" / "old" / "answers.jsonl"
    before = kept.stat().st_mtime_ns
    found = compared(models, inputs, tmp_path / "out", **full)
    assert found == made[0]
    assert kept.stat().st_mtime_ns == before


def test_another_setting_is_refused_by_its_file(models, inputs, copied):
    with pytest.raises(jaxalign.UserError, match=r"answers.jsonl: was made from other inputs"):
        compared(models, inputs, copied, seed=1)


def test_another_scorer_draws_no_answer_again(models, inputs, copied, undrawn):
    by = {"length": {"weight": -1}}
    with pytest.raises(jaxalign.UserError, match=r"scores.jsonl: was made from other inputs"):
        compared(models, inputs, copied, by={"length": {"unit": "words"}})
    found = compared(models, inputs, copied, by=by, accept_changes=True)
    rows = read(copied / "new" / "scores.jsonl")
    assert found.models[1].measures["score"].mean == pytest.approx(
        np.mean([row["scores"] for row in rows])
    )


def test_accepted_changes_draw_again(made, models, inputs, copied):
    found = compared(models, inputs, copied, seed=50, accept_changes=True)
    assert read(copied / "old" / "answers.jsonl")[0]["seeds"][0] == 50
    assert found.models != made[0].models


# Measures


def test_the_measures_of_answers_are_those_of_the_files(made):
    for model in made[0].models:
        rows = read(made[1] / model.name / "scores.jsonl")
        wanted = {
            "score": [np.mean([len(text) for text in row["responses"]]) for row in rows],
            "tokens": [np.mean([len(ids) for ids in row["token_ids"]]) for row in rows],
            "without_end": [np.mean([end == "length" for end in row["finishes"]]) for row in rows],
        }
        for name, values in wanted.items():
            error = np.std(values, ddof=1) / PROMPTS**0.5
            assert model.measures[name] == pytest.approx((np.mean(values), error, PROMPTS))


def test_distinct_n_grams_are_of_all_answers_to_a_prompt_without_the_stop_token():
    row = {"token_ids": [[1, 2, 1, 9], [1, 2], [9]], "finishes": ["stop", "length", "stop"]}
    assert run._distinct(row, 1) == 2 / 5
    assert run._distinct(row, 2) == 2 / 3
    assert np.isnan(run._distinct({"token_ids": [[9]], "finishes": ["stop"]}, 1))


def test_a_model_has_no_divergence_and_no_change_from_itself(made):
    found = made[0].models[0].measures
    for name in ("kl", "change_chosen", "change_rejected"):
        assert found[name].estimate == (0, 0)
    assert found["reward_accuracy"].mean == 0.5


def sums(folder, prompts, answers):
    """By transformers: the log-probability of each answer, token ids, after its prompt."""
    model, tokenizer = in_torch(folder), open_encoder(folder).tokenizer
    found = []
    for prompt, of_prompt in zip(prompts, answers, strict=True):
        start = tokenizer(prompt).input_ids
        for ids in of_prompt:
            with torch.no_grad():
                logits = model(torch.tensor([[*start, *ids]])).logits[0].log_softmax(-1)
            at = len(start) - 1
            found.append(sum(float(logits[at + t, token]) for t, token in enumerate(ids)))
    return np.array(found).reshape(len(prompts), -1)


def test_the_divergence_is_of_the_drawn_tokens_under_both_models(made, models):
    rows = read(made[1] / "new" / "answers.jsonl")
    prompts, ids = ([row[name] for row in rows] for name in ("prompt", "token_ids"))
    old, new = (sums(folder, prompts, ids) for folder in models)
    values = (new - old).mean(1)
    found = made[0].models[1].measures["kl"]
    assert found.mean == pytest.approx(values.mean(), rel=1e-3, abs=1e-4)
    assert found.error == pytest.approx(values.std(ddof=1) / PROMPTS**0.5, rel=1e-3)
    # And these are the tokens whose log-probabilities were summed while they were drawn.
    np.testing.assert_allclose([row["logps"] for row in rows], new, rtol=1e-4, atol=1e-4)


def test_changes_of_held_out_pairs_are_those_of_two_models(made, models, inputs):
    rows = read(inputs / "held_out.jsonl")
    opened = [jaxalign.open(folder, "float32") for folder in models]
    prompts = [row["prompt"] for row in rows]
    old, new = (
        np.array([m.logp(prompts, [row[name] for row in rows]) for name in ("chosen", "rejected")])
        for m in opened
    )
    found = made[0].models[1].measures
    change = new - old
    for i, name in enumerate(("change_chosen", "change_rejected")):
        assert found[name].mean == pytest.approx(change[i].mean(), rel=1e-3, abs=1e-5)
        assert found[name].number == h.HELD_OUT
    assert found["ranking"].mean == np.mean(new[0] > new[1])
    assert found["reward_accuracy"].mean == np.mean(change[0] > change[1])


def test_wins_pair_the_answers_of_the_same_number(made):
    old, new = (
        np.array([row["scores"] for row in read(made[1] / name / "scores.jsonl")])
        for name in ("old", "new")
    )
    (pair,) = made[0].pairs
    assert pair.name == "new"
    assert pair.win_rate.value == pytest.approx(np.mean((new > old) + 0.5 * (new == old)))
    gains = (new - old).mean(1)
    error = gains.std(ddof=1) / PROMPTS**0.5
    assert pair.difference == pytest.approx((gains.mean(), error, PROMPTS))


def test_a_chat_template_reaches_the_draws_the_reference_and_the_held_out_pairs(
    models, inputs, tmp_path
):
    """The same template in the files of the tokenizer gives the same."""
    template = tmp_path / "chat.jinja"
    template.write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    own = [shutil.copytree(path, tmp_path / path.name) for path in models]
    for folder in own:
        shutil.copy(template, folder / "chat_template.jinja")

    def turn(role, text):
        return [{"role": role, "content": text}]

    pairs = [
        {"prompt": turn("user", f"{i}")}
        | {name: turn("assistant", text) for name, text in (("chosen", "a"), ("rejected", "bc"))}
        for i in range(3)
    ]
    h.write_rows(tmp_path / "chats.jsonl", pairs)
    files = {"prompts": tmp_path / "chats.jsonl", "held_out": tmp_path / "chats.jsonl"}
    how = files | {"limit": None, "max_new": 3}
    inside = compared(own, inputs, tmp_path / "a", reference=own[0], **how)
    given = compared(
        models, inputs, tmp_path / "b", reference=models[0], chat_template=str(template), **how
    )
    assert [m.measures for m in given.models] == [m.measures for m in inside.models]


# Models


def test_names_are_the_shortest_distinct_endings():
    assert distinct_endings(["runs/a/sft/model", "runs/a/dpo/model", "base"]) == [
        "sft/model",
        "dpo/model",
        "base",
    ]
    assert distinct_endings(["runs/a/dpo/model", "runs/b/dpo/model"]) == [
        "a/dpo/model",
        "b/dpo/model",
    ]
    assert distinct_endings(["/a", "/x/a", "/y/model/"]) == ["a", "x/a", "y/model"]


def test_a_run_is_the_model_of_its_last_stage_that_trains(trained, inputs, tmp_path):
    folder = trained[0]
    found = compared([folder / "sft" / "model", folder], inputs, tmp_path / "out")
    again = compared([folder / "sft" / "model", folder / "dpo" / "model"], inputs, tmp_path / "b")
    assert [m.measures for m in found.models] == [m.measures for m in again.models]
    assert [m.name for m in found.models] == ["sft/model", "run"]


def test_an_adapter_is_a_model(models, inputs, tmp_path):
    peft_model(models[0], r=2).save_pretrained(tmp_path / "adapter")
    found = compared([models[0], tmp_path / "adapter"], inputs, tmp_path / "out")
    assert [m.name for m in found.models] == ["old", "adapter"]


# Mistakes

WRONG = {
    "one model": ({"models": 1}, r"compare\.models: give at least two, .*\(got 1\)"),
    "temperature": (
        {"temperature": 0.5, "reference": True},
        r"compare\.temperature: with a reference it is 1, because the KL .*\(got 0\.5\)",
    ),
    "top_k": ({"top_k": 5, "reference": True}, r"compare\.top_k: with a reference it is 0, .* 5"),
    "top_p": ({"top_p": 0.9, "reference": True}, r"compare\.top_p: with a reference it is 1"),
    "no reference": (
        {"held_out": "held_out.jsonl"},
        r"compare\.held_out: the change is measured from a reference; give one",
    ),
    "values": (
        {"held_out": "held_out.jsonl", "reference": True, "chat_template_kwargs": {"a": 1}},
        r"compare\.chat_template_kwargs: held-out pairs do not read it; give them a column",
    ),
    "votes": ({"combine": "votes"}, r"compare: combine: Input should be 'sum', 'mean' or 'min'"),
    "an option": ({"temprature": 1}, r"compare: temprature: unknown; did you mean 'temperature'"),
    "a model": ({"model": "x"}, "compare: model: the models answer; leave it out"),
    "an endpoint": ({"endpoint": {}}, "compare: endpoint: the models answer; leave it out"),
    "a judge": (
        {"by": {"judge": {"endpoint": "http://localhost", "model": "m", "key_env": None}}},
        r"by\.judge: in pairs it compares the answers of one model .*`against`",
    ),
    "a scorer": ({"by": "lenght"}, r"no scorer 'lenght'; did you mean 'length'"),
}


@pytest.mark.parametrize("changes, message", WRONG.values(), ids=WRONG)
def test_a_wrong_setting_is_one_error_and_leaves_no_folder(
    changes, message, models, inputs, tmp_path
):
    changes = dict(changes)
    given = models[: changes.pop("models", 2)]
    if "reference" in changes:
        changes["reference"] = models[0]
    if "held_out" in changes:
        changes["held_out"] = inputs / changes["held_out"]
    with pytest.raises(jaxalign.UserError, match=message):
        compared(given, inputs, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_given_twice_is_refused(models, inputs, tmp_path):
    with pytest.raises(jaxalign.UserError, match=r"models: .*/old is given twice; give each"):
        compared([models[0], models[0]], inputs, tmp_path / "out")


def test_a_file_in_place_of_the_folder_is_refused(models, inputs, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(jaxalign.UserError, match=r"--out: .* is a file; give a folder"):
        compared(models, inputs, tmp_path / "out")


def test_a_run_that_is_not_finished_is_refused(models, inputs, trained, tmp_path):
    folder = shutil.copytree(trained[0], tmp_path / "run")
    shutil.rmtree(folder / "dpo" / "model")
    with pytest.raises(jaxalign.UserError, match=r"dpo/model: not there yet; train the stage"):
        compared([models[0], folder], inputs, tmp_path / "out")


def test_a_reference_with_another_vocabulary_is_refused(models, inputs, hf_checkpoint, tmp_path):
    other = hf_checkpoint("llama-gqa")
    with pytest.raises(jaxalign.UserError, match=r"reference: .* has another vocabulary than"):
        compared(models, inputs, tmp_path / "out", reference=other)


def test_a_reference_that_gives_scores_is_refused(models, inputs, tmp_path):
    classifier(tmp_path / "scores", "llama-gqa", 1)
    with pytest.raises(jaxalign.UserError, match=r"reference: .* is a reward model, which has no"):
        compared(models, inputs, tmp_path / "out", reference=tmp_path / "scores")


def test_held_out_rows_that_are_no_pairs_are_refused(models, inputs, tmp_path):
    h.write_rows(tmp_path / "rows.jsonl", [{"prompt": "1+1=", "completion": "2"}])
    with pytest.raises(jaxalign.UserError, match=r"rows.jsonl line 1: held-out data are pairs"):
        compared(
            models,
            inputs,
            tmp_path / "out",
            reference=models[0],
            held_out=tmp_path / "rows.jsonl",
        )


def test_a_token_that_the_reference_lacks_is_refused():
    with pytest.raises(jaxalign.UserError, match=r"line 3: an answer has the token 9, .* 0 to 8"):
        reference.drawn_example(np.array([1]), [[2], [3, 9]], "line 3", 9)


def test_the_result_is_plain_json(made):
    text = json.dumps(made[0].to_json(), allow_nan=False)
    assert json.loads(text) == json.loads((made[1] / "comparison.json").read_text())
