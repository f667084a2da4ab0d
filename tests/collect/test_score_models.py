import json

import jax
import numpy as np
import pytest
import torch
from lib import runs as h
from lib.checkpoints import classifier, edit_json, in_torch

from jaxalign.collect.score import open_scorers, score_rows
from jaxalign.collect.scorers.models import step_ends
from jaxalign.core.sharding import make_mesh
from jaxalign.errors import UserError
from jaxalign.hf.open import open_encoder
from jaxalign.language_model import LanguageModel
from jaxalign.recipe.scorers import read_scorers
from jaxalign.settings import Mesh

MESH = h.one_device()
ROWS = [
    {"prompt": "1+1=", "responses": [" 2", " it is 2", ""]},
    {"prompt": "9-12=", "responses": [" -3", " -3", " -3"]},
    {"prompt": "a longer prompt, 3*3=", "chosen": " 9", "rejected": " 10"},
    {"prompt": "5+5=", "completion": "12"},
]
CHATS = [
    {
        "prompt": [{"role": "user", "content": "1+1="}],
        "responses": [[{"role": "assistant", "content": text}] for text in ("2", "it is 3")],
    }
]


@pytest.fixture(scope="module")
def folders(hf_checkpoint):
    return hf_checkpoint("llama-gqa"), hf_checkpoint("qwen2-tied")


def scored(by, rows=ROWS, mesh=MESH):
    records = read_scorers(by)
    scorers = open_scorers(records, mesh, "float32")
    return score_rows([(f"row {i}", row) for i, row in enumerate(rows)], records, scorers)


def flat(row):
    """The scores of a row, in the order of its answers."""
    pair = [row[k] for k in ("score_chosen", "score_rejected") if k in row]
    return row.get("scores") or pair or [row["score"]]


def logps(folder, prompt, texts, *, end=True):
    """By transformers: sums over the tokens of each answer and its stop token; their number."""
    model, tokenizer = in_torch(folder), open_encoder(folder).tokenizer
    start = len(tokenizer(prompt).input_ids)
    found = []
    for text in texts:
        ids = tokenizer(prompt + text).input_ids + [tokenizer.eos_token_id] * end
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        tokens = range(start, len(ids))
        found.append((sum(float(logits[t - 1, ids[t]]) for t in tokens), len(tokens)))
    return np.array(found).T


@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_log_ratios_are_those_of_two_models_in_transformers(folders, beta):
    model, reference = folders
    found = scored({"log_ratio": {"model": f"{model}", "reference": f"{reference}", "beta": beta}})
    for row in found:
        texts = row.get("responses") or [row[k] for k in row if k in ("chosen", "rejected")]
        texts = texts or [row["completion"]]
        (a, _), (b, _) = (logps(f, row["prompt"], texts) for f in folders)
        np.testing.assert_allclose(flat(row), beta * (a - b), rtol=1e-4, atol=1e-4)


def test_log_ratios_per_token_are_divided_by_the_scored_tokens(folders):
    model, reference = map(str, folders)
    by = {"log_ratio": {"model": model, "reference": reference, "per_token": True}}
    (row,) = scored(by, ROWS[:1])
    (a, count), (b, _) = (logps(f, row["prompt"], row["responses"]) for f in folders)
    np.testing.assert_allclose(row["scores"], (a - b) / count, rtol=1e-4, atol=1e-4)


def test_log_ratios_of_chats_are_those_of_a_language_model(folders):
    model, reference = map(str, folders)
    (row,) = scored({"log_ratio": {"model": model, "reference": reference}}, CHATS)
    prompts = [CHATS[0]["prompt"]] * 2
    own, ref = (LanguageModel(f, MESH, "float32").logp(prompts, row["responses"]) for f in folders)
    np.testing.assert_allclose(row["scores"], own - ref, rtol=1e-4, atol=1e-4)


def test_the_stop_token_of_an_answer_that_was_cut_is_not_scored(folders):
    model, reference = map(str, folders)
    row = ROWS[0] | {"finishes": ["stop", "length", "stop"]}
    (found,) = scored({"log_ratio": {"model": model, "reference": reference}}, [row])
    (whole, _), (whole_ref, _) = (logps(f, row["prompt"], row["responses"]) for f in folders)
    (cut, _), (cut_ref, _) = (logps(f, row["prompt"], row["responses"], end=False) for f in folders)
    want = whole - whole_ref
    want[1] = (cut - cut_ref)[1]
    np.testing.assert_allclose(found["scores"], want, rtol=1e-4, atol=1e-4)


def test_equal_answers_have_equal_scores_and_the_order_of_rows_changes_none(folders):
    by = {"log_ratio": {"model": str(folders[0]), "reference": str(folders[1])}}
    forward, backward = scored(by), scored(by, ROWS[::-1])
    assert len(set(forward[1]["scores"])) == 1
    assert len(forward[1]["scores"]) == 3
    for a, b in zip(forward, backward[::-1], strict=True):
        np.testing.assert_allclose(flat(a), flat(b), rtol=1e-5, atol=1e-5)


def test_scores_of_a_reward_model_are_those_of_transformers(tmp_path):
    theirs = classifier(tmp_path, "llama-gqa", 1)
    found = scored({"reward_model": str(tmp_path)}, ROWS[:1])
    encoder = open_encoder(tmp_path)
    (start,) = encoder.prompts([("", "1+1=")])
    ids = [
        [*start, *encoder.tokenizer(y, add_special_tokens=False).input_ids, 2]
        for y in ROWS[0]["responses"]
    ]
    with torch.no_grad():
        want = [float(theirs(torch.tensor([row])).logits[0, 0]) for row in ids]
    np.testing.assert_allclose(found[0]["scores"], want, rtol=1e-4, atol=1e-4)


def test_a_reward_model_scores_an_answer_that_was_cut_as_a_whole_one(tmp_path):
    classifier(tmp_path, "llama-gqa", 1)
    cut = ROWS[0] | {"finishes": ["length"] * 3}
    one, other = scored({"reward_model": str(tmp_path)}, [ROWS[0], cut])
    assert one["scores"] == pytest.approx(other["scores"], rel=1e-5)


STEPS = [{"prompt": "x", "responses": ["a\n\nbc\n\nd", "ab", "\n\na\n\n\n\nb\n\n"]}]


@pytest.mark.parametrize("over", ["min", "sum", "last", "mean"])
def test_process_rewards_of_steps_are_log_ratios_of_their_tokens(folders, over):
    by = {"process": {"model": str(folders[0]), "reference": str(folders[1]), "beta": 0.5}}
    by["process"]["over"] = over
    (row,) = scored(by, STEPS)
    texts = STEPS[0]["responses"]
    assert [len(steps) for steps in row["steps"]] == [3, 1, 2]
    # The reward of an answer's beginning is the log-ratio of its tokens.
    starts = ["a\n\n", "a\n\nbc\n\n"]
    (a, _), (b, _) = (logps(f, "x", starts, end=False) for f in folders)
    (whole, _), (whole_ref, _) = (logps(f, "x", texts) for f in folders)
    totals = 0.5 * np.array([*(a - b), (whole - whole_ref)[0]])
    np.testing.assert_allclose(row["steps"][0], np.diff(totals, prepend=0), rtol=1e-3, atol=1e-4)
    sums = [sum(steps) for steps in row["steps"]]
    np.testing.assert_allclose(sums, 0.5 * (whole - whole_ref), rtol=1e-4, atol=1e-4)
    combine = {"min": min, "sum": sum, "last": lambda x: x[-1], "mean": np.mean}[over]
    assert row["scores"] == pytest.approx([combine(steps) for steps in row["steps"]])


def test_a_named_process_scorer_names_its_steps(folders):
    by = {"process": {"model": str(folders[0]), "reference": str(folders[1]), "name": "prm"}}
    (row,) = scored(by, ROWS[2:3])
    assert set(row) - set(ROWS[2]) == {
        *("score_chosen", "score_rejected", "score_chosen_prm", "score_rejected_prm"),
        *("steps_chosen_prm", "steps_rejected_prm"),
    }


@pytest.mark.parametrize(
    ("text", "want"),
    [("a\n\nb", 2), ("a", 1), ("", 1), ("\n\n\n\n", 1), ("\u00e4\n\n\u00e4\n\n", 2)],
)
def test_steps_are_the_parts_with_text(folders, text, want):
    encoder = open_encoder(folders[0])
    ids = np.array([*encoder.tokenizer(text, add_special_tokens=False).input_ids, 2])
    ends = step_ends(ids, "\n\n", encoder)
    assert len(ends) == want
    assert ends[-1] == len(ids)
    assert ends == sorted(ends)


def test_models_with_other_tokens_have_no_process_rewards(folders, damaged_checkpoint):
    raw = json.loads((folders[0] / "tokenizer.json").read_text())
    edit_json(damaged_checkpoint / "tokenizer.json", model=raw["model"] | {"merges": []})
    by = {"process": {"model": str(folders[0]), "reference": str(damaged_checkpoint)}}
    with pytest.raises(UserError, match=r"row 3: .* make other tokens of it"):
        scored(by)


def test_a_model_of_the_wrong_kind_is_refused(folders, tmp_path):
    classifier(tmp_path / "one", "llama-gqa", 1)
    classifier(tmp_path / "two", "llama-gqa", 2)
    with pytest.raises(UserError, match=r"log_ratio.reference: .*one is a reward model"):
        scored({"log_ratio": {"model": str(folders[0]), "reference": str(tmp_path / "one")}})
    with pytest.raises(UserError, match=r"reward_model.model: .* gives 0 scores"):
        scored({"reward_model": str(folders[0])})
    with pytest.raises(UserError, match=r"reward_model.model: .* gives 2 scores"):
        scored({"reward_model": str(tmp_path / "two")})
    with pytest.raises(UserError, match=r"process.model: no folder"):
        scored({"process": {"model": "/nowhere", "reference": str(folders[0])}})


def test_an_answer_that_does_not_fit_is_refused_by_its_row(folders):
    by = {"log_ratio": {"model": str(folders[0]), "reference": str(folders[1])}}
    with pytest.raises(UserError, match=r"row 0: prompt . response has .* tokens"):
        scored(by, [{"prompt": "x", "completion": "y" * 200}])


def test_the_fingerprint_is_of_the_weights_not_of_the_folder(folders, damaged_checkpoint):
    def of(model):
        by = {"log_ratio": {"model": str(model), "reference": str(folders[1])}}
        return open_scorers(read_scorers(by), MESH, "float32")[0].fingerprint

    assert of(folders[0]) == of(damaged_checkpoint)
    edit_json(damaged_checkpoint / "tokenizer_config.json", chat_template="{{ messages }}")
    assert of(folders[0]) != of(damaged_checkpoint)
    assert of(folders[0]) != of(folders[1])


@pytest.mark.slow
def test_scores_on_eight_devices_are_those_on_one(folders):
    by = {"log_ratio": {"model": str(folders[0]), "reference": str(folders[1])}}
    for a, b in zip(scored(by, mesh=make_mesh(Mesh(), jax.devices())), scored(by), strict=True):
        np.testing.assert_allclose(flat(a), flat(b), rtol=1e-4, atol=1e-4)
