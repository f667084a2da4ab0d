"""The functions of the package, as a notebook calls them."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lib import runs as h
from lib.checkpoints import classifier

import jaxalign
from jaxalign.core import layouts
from jaxalign.data.encode import Encoder
from jaxalign.data.tokenize import load_examples
from jaxalign.quickstart import world
from jaxalign.settings import Data


@pytest.fixture(scope="module")
def finished(trained):
    """The recipe of a finished run as plain values, and its folder."""
    folder, recipe, process = trained
    assert process.returncode == 0, process.stderr
    return yaml.safe_load(Path(recipe).read_text()), folder


@pytest.mark.parametrize("name", jaxalign.__all__)
def test_every_name_of_the_package_is_there(name):
    assert getattr(jaxalign, name) is not None
    assert name in dir(jaxalign)


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        jaxalign.trian  # noqa: B018


def test_train_takes_plain_values_and_returns_the_run(finished):
    values, folder = finished
    run = jaxalign.train(values)
    assert run.folder == folder
    assert run.stages == ("sft", "dpo")


def test_train_takes_a_path_and_overrides(inputs, tmp_path):
    values = h.values(inputs, tmp_path / "one", "sft", stages__sft__steps=50)
    path = h.write_recipe(tmp_path / "recipe.yaml", values)
    overrides = {"stages.sft.steps": 1, "run.dir": str(tmp_path / "two")}
    run = jaxalign.train(path, overrides)
    assert run.folder == tmp_path / "two"
    assert run.metrics("sft")["loss"].steps.tolist() == [1]


def test_train_runs_in_a_thread(finished):
    errors = []

    def call():
        try:
            jaxalign.train(finished[0])
        except BaseException as e:
            errors.append(e)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert errors == []


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("stages.sft.stepz", r"overrides: stages\.sft\.stepz: no 'stepz'; did you mean 'steps'\?"),
        ("stages.sff.steps", r"overrides: stages\.sff\.steps: no 'sff'; did you mean 'sft'\?"),
        ("run.seed.x", r"overrides: run\.seed\.x: no 'x'"),
    ],
)
def test_an_unknown_override_is_refused_with_the_near_one(finished, path, message):
    with pytest.raises(jaxalign.UserError, match=message):
        jaxalign.train(finished[0], {path: 1})


def test_an_override_out_of_range_is_refused(finished):
    with pytest.raises(jaxalign.UserError, match=r"overrides: stages.sft.steps: .* greater than 0"):
        jaxalign.train(finished[0], {"stages.sft.steps": 0})


def test_metrics_have_steps_and_values(finished):
    lines = h.metrics(finished[1] / "dpo")
    metrics = jaxalign.Run(finished[1]).metrics("dpo")
    loss = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    assert list(zip(*metrics["loss"], strict=True)) == loss
    assert metrics["eval/loss"].steps.tolist() == [h.STEPS["dpo"]]


def test_a_model_of_a_run_is_a_folder(finished):
    run = jaxalign.Run(finished[1])
    assert run.model("sft") == finished[1] / "sft" / "model"
    assert run.model() == finished[1] / "dpo" / "model"


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(jaxalign.UserError, match="no run is here"):
        jaxalign.Run(tmp_path)


def test_an_unknown_stage_of_a_run_is_refused(finished):
    with pytest.raises(jaxalign.UserError, match=r"no stage 'dop'; did you mean 'dpo'\?"):
        jaxalign.Run(finished[1]).metrics("dop")


def test_evaluate_gives_the_metrics_of_the_last_evaluation(finished):
    metrics = jaxalign.evaluate(finished[0])
    last = h.metrics(finished[1] / "dpo")[-1]
    assert metrics["loss"] == pytest.approx(last["eval/loss"], rel=1e-4)


@pytest.fixture(scope="module")
def opened(finished):
    return jaxalign.open(finished[1] / "sft" / "model", "float32")


def rows(inputs):
    return [h.pair(i) for i in range(h.TRAIN)]


@pytest.mark.parametrize("place, name", enumerate(("chosen", "rejected")))
def test_logp_is_that_of_the_reference_pass_of_training(opened, finished, inputs, place, name):
    found = opened.logp([r["prompt"] for r in rows(inputs)], [r[name] for r in rows(inputs)])
    settings = Data(**finished[0]["stages"]["dpo"]["data"])
    pairs = load_examples(
        settings, settings.path, "", Encoder(opened.tokenizer), layouts.PAIRS, seed=0
    )
    part = np.load(finished[1] / "dpo" / "reference" / "train" / "part-000000000.npz")
    sums = np.add.reduceat(part["logp"], pairs.offsets[:-1]).reshape(-1, 2)
    np.testing.assert_allclose(found, sums[:, place], rtol=1e-5)


def test_logp_does_not_depend_on_the_batch(opened, inputs):
    prompts, responses = zip(*((r["prompt"], r["rejected"]) for r in rows(inputs)), strict=True)
    alone = [opened.logp([p], [y])[0] for p, y in list(zip(prompts, responses, strict=True))[:3]]
    np.testing.assert_allclose(opened.logp(prompts, responses)[:3], alone, rtol=1e-5)


def test_generate_is_that_of_the_command(opened, jaxalign_command, finished):
    folder = finished[1] / "sft" / "model"
    how = ("--prompt", "1+1=", "--max-new", 4, "--dtype", "float32", "--temperature", 0)
    _, out, _ = jaxalign_command("generate", folder, *how)
    (answer,) = jaxalign.generate(opened, ["1+1="], max_new=4, temperature=0)
    assert f'"answer": "{answer}"' in out


@pytest.mark.parametrize("scores", [1, 3])
def test_scores_of_a_reward_model_are_those_of_transformers(tmp_path, scores):
    theirs = classifier(tmp_path, "llama-gqa", scores)
    opened = jaxalign.open(tmp_path, "float32")
    prompts, responses = ["1+1=", "9-"], [" 2", " 3 4"]
    eos = opened.tokenizer.eos_token_id
    texts = [p + y for p, y in zip(prompts, responses, strict=True)]
    rows = [[*opened.tokenizer(text).input_ids, eos] for text in texts]
    with torch.no_grad():
        wanted = [theirs(torch.tensor([row])).logits.numpy()[0] for row in rows]
    wanted = np.stack(wanted)[:, 0] if scores == 1 else np.stack(wanted)
    np.testing.assert_allclose(opened.score(prompts, responses), wanted, rtol=1e-4, atol=1e-5)


def test_a_language_model_gives_no_scores(opened):
    with pytest.raises(jaxalign.UserError, match="not a reward model; call logp"):
        opened.score(["a"], ["b"])


@pytest.mark.parametrize(
    ("prompts", "responses", "message"),
    [
        ("1+1=", ["2"], "are lists; put each text into one"),
        (["1+1="], [], "got 1 prompts and 0 responses"),
        (["1+1="], [" "], r"responses\[0\]: 'completion' is empty"),
        (["1" * 80], ["2"], r"responses\[0\]: prompt has"),
        (["1+1=", ""], ["2", world.END], r"responses\[1\]: 'completion' is empty"),
    ],
)
def test_responses_that_do_not_fit_are_refused(opened, prompts, responses, message):
    with pytest.raises(jaxalign.UserError, match=message):
        opened.logp(prompts, responses)


def test_joining_hosts_after_jax_has_been_used_is_refused(finished, compile_cache, tmp_path):
    values = finished[0] | {"run": {"dir": str(tmp_path / "run"), "distributed": True}}
    path = h.write_recipe(tmp_path / "recipe.yaml", values)
    code = f"import jax, jaxalign; jax.devices(); jaxalign.train({path!r})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=h.environment(compile_cache),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "run.distributed: this process has used jax already" in done.stderr
