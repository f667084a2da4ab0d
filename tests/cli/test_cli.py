"""The commands and their exit codes."""

import dataclasses
import importlib.metadata
import json
import math
import re
import shutil
import signal
import subprocess

import numpy as np
import pytest
import transformers
from lib import runs as h

from jaxalign.collect.sample import Sampling
from jaxalign.commands import COMMANDS
from jaxalign.run.folder import compile_cache_folder
from jaxalign.settings import Run

GOES_ON = "the same command resumes from there"


def test_train_ends_with_0_and_says_where_the_model_is(trained):
    folder, _, process = trained
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    assert f"dpo: model written to {folder}/dpo/model" in process.stdout


def test_evaluate_prints_the_metrics_of_the_last_evaluation(trained, jaxalign_command):
    folder, recipe, _ = trained
    code, out, _ = jaxalign_command("evaluate", recipe)
    assert code == 0
    printed = dict(re.findall(r"^(\S+) +(-?[\d.e-]+) *$", out, re.MULTILINE))
    last = h.metrics(folder / "dpo")[-1]
    assert last["step"] == h.STEPS["dpo"]
    for name in ("loss", "rewards/accuracies", "rewards/margins", "logps/chosen"):
        assert float(printed[name]) == pytest.approx(last[f"eval/{name}"], rel=1e-4)


def test_evaluate_takes_another_checkpoint(trained, jaxalign_command):
    folder, recipe, _ = trained
    code, out, _ = jaxalign_command("evaluate", recipe, "--checkpoint", folder / "sft" / "model")
    assert code == 0
    # The reference itself.
    loss = re.search(r"^loss +([\d.]+)", out, re.MULTILINE)
    assert loss is not None
    assert float(loss[1]) == pytest.approx(math.log(2), abs=1e-5)


def test_generate_prints_one_json_line(trained, jaxalign_command):
    model = trained[0] / "dpo" / "model"
    code, out, _ = jaxalign_command(
        "generate", model, "--prompt", "1+1=", "--max-new", 4, "--dtype", "float32"
    )
    assert code == 0
    record = json.loads(out)
    assert record["prompt"] == "1+1="
    assert isinstance(record["answer"], str)


def test_generate_answers_every_prompt_of_a_file(trained, jaxalign_command, inputs, tmp_path):
    model = trained[0] / "dpo" / "model"
    out = tmp_path / "out.jsonl"
    prompts = ["1+1=", "2+2=", "0+5="]
    h.write_rows(tmp_path / "prompts.jsonl", [{"prompt": p} for p in prompts])
    files = ("--prompts", tmp_path / "prompts.jsonl", "--out", out)
    how = ("--max-new", 4, "--temperature", 0, "--dtype", "float32", "--batch-size", 8)
    assert jaxalign_command("generate", model, *files, *how)[:2] == (0, "")
    assert [json.loads(line)["prompt"] for line in out.read_text().splitlines()] == prompts


def test_reference_writes_what_training_reads(trained, jaxalign_command, tmp_path):
    folder, recipe, _ = trained
    ours = h.copy_folder(folder, tmp_path / "run")
    shutil.rmtree(ours / "dpo" / "reference")
    code, out, _ = jaxalign_command("reference", recipe, "--run.dir", ours)
    assert code == 0
    assert f"reference statistics are in {ours}/dpo/reference" in out
    for part in (folder / "dpo" / "reference").rglob("part-*.npz"):
        with np.load(part) as theirs, np.load(ours / part.relative_to(folder)) as again:
            for name in theirs.files:
                np.testing.assert_allclose(again[name], theirs[name], atol=1e-5)


def test_export_writes_the_newest_checkpoint_of_an_unfinished_stage(
    stopped, jaxalign_command, tmp_path
):
    folder, recipe, *_ = stopped
    code, out, _ = jaxalign_command("export", recipe, "--out", tmp_path / "model")
    assert code == 0
    assert f"the model after update {h.sealed(folder / 'sft')[-1]} is in" in out
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(jaxalign_command, command):
    code, out, err = jaxalign_command(command, "--help")
    assert code == 0
    assert f"jaxalign {command}" in out
    assert err == ""


def test_help_lists_every_command(jaxalign_command):
    code, out, _ = jaxalign_command("--help")
    assert code == 0
    assert all(f"  {name} " in out for name in COMMANDS)


def test_a_recipe_with_help_prints_every_field(trained, jaxalign_command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    _, recipe, _ = trained
    code, out, _ = jaxalign_command("train", recipe, "--help")
    assert code == 0
    text = (trained[0] / "recipe.yaml").read_text()
    fields = set(re.findall(r"^ +([a-z_0-9]+): \S", text, re.MULTILINE)) - {"name"}
    # These have flags where the recipe gives them.
    fields -= {"lora", "mixture", "chat_template_kwargs", "keep_best", "eval_samples"}
    assert len(fields) > 40
    assert [f for f in fields if f".{f.replace('_', '-')}" not in out] == []


def test_generate_with_help_prints_every_field(jaxalign_command):
    code, out, _ = jaxalign_command("generate", "--help")
    assert code == 0
    flags = [f"--{f.name.replace('_', '-')}" for f in dataclasses.fields(Sampling)]
    assert [f for f in flags if f not in out and f not in ("--model", "--mesh")] == []
    assert "--mesh.fsdp" in out


def test_version_is_the_installed_one(jaxalign_command):
    wanted = importlib.metadata.version("jaxalign")
    assert jaxalign_command("--version")[:2] == (0, f"jaxalign {wanted}\n")


def test_report_writes_the_page_of_a_run_and_prints_where(trained, jaxalign_command, tmp_path):
    folder = h.copy_folder(trained[0], tmp_path / "run")
    shutil.rmtree(folder / "report")
    code, out, _ = jaxalign_command("report", folder)
    assert code == 0
    assert f"report: {folder}/report/report.html" in out
    assert (folder / "report" / "report.html").is_file()


def test_no_command_is_an_error_that_shows_the_commands(jaxalign_command):
    code, out, _ = jaxalign_command()
    assert code == 2
    assert "evaluate" in out


# Exit codes of runs that do not finish


def test_sigterm_saves_and_exits_with_143(stopped):
    folder, _, code, err = stopped
    assert code == 143
    last = h.sealed(folder / "sft")[-1]
    assert err == f"jaxalign: sft: stopped and saved after update {last}; {GOES_ON}\n"


@pytest.mark.slow
def test_an_interrupt_saves_and_exits_with_130(running_forever):
    folder, _, code, err = running_forever(signal.SIGINT)
    assert code == 130
    assert GOES_ON in err
    assert h.sealed(folder / "sft")


def test_a_loss_of_nan_exits_with_1(inputs, jaxalign_command, tmp_path):
    changes = {"optimizer": {"learning_rate": 1e30}, "steps": 3}
    values = h.values(inputs, tmp_path / "run", "sft")
    values["stages"]["sft"] |= changes
    code, _, err = jaxalign_command("train", h.write_recipe(tmp_path / "recipe.yaml", values))
    assert code == 1
    assert re.match(r"jaxalign: update \d: loss .* not finite", err)


@pytest.mark.slow
def test_a_full_disk_exits_with_1_and_keeps_what_was_saved(stopped, compile_cache, tmp_path):
    folder, recipe, *_ = stopped
    ours = h.copy_folder(folder, tmp_path / "run")
    saved = h.sealed(ours / "sft")
    # As a full disk: no file may grow over 64 blocks, of 512 or 1024 bytes.
    limited = ["sh", "-c", 'ulimit -f 64 && exec "$@"', "sh"]
    full = subprocess.run(
        [*limited, *h.command("train", recipe, "--run.dir", str(ours))],
        env=h.environment(compile_cache),
        capture_output=True,
        text=True,
        check=False,
    )
    assert full.returncode == 1
    # Writes in flight complain too, in threads of their own: even in the middle of a line.
    (error,) = re.findall("jaxalign: checkpoint .*", full.stderr) or [full.stderr]
    assert "could not be saved: File too large; " in error
    assert f"the checkpoint of step {saved[-1]} is intact" in error
    assert h.sealed(ours / "sft") == saved
    out = str(tmp_path / "model")
    again = h.cli("export", recipe, "--run.dir", str(ours), "--out", out, cache=compile_cache)
    assert f"the model after update {saved[-1]} is in {out}" in again.stdout, again.stderr


def test_compiled_programs_are_kept_next_to_the_run_unless_told_otherwise(tmp_path, monkeypatch):
    run = str(tmp_path / "run")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    assert compile_cache_folder(Run(dir=run)) == str(tmp_path / "compile_cache")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/theirs")
    assert compile_cache_folder(Run(dir=run)) == "/theirs"
    assert compile_cache_folder(Run(dir=run, compile_cache="/mine")) == "/mine"
    assert compile_cache_folder(Run(dir=run, compile_cache="off")) is None


def test_a_command_whose_output_nobody_reads_ends_quietly(compile_cache):
    with subprocess.Popen(
        h.command("train", "--help"),
        env=h.environment(compile_cache),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 141)
