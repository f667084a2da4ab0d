"""Whatever is wrong is one clear error, with exit code 2."""

import gzip
import json
import re

import pytest
import transformers
from lib import runs as h

from jaxalign.sealed import SEAL, sealed

GOES_ON = "the same command resumes from there"


WRONG = {
    "recipe": {
        "unknown key": ({"stages__sft__batchsize": 8}, r"did you mean 'batch_size'\?"),
        "unknown objective": (
            {"stages__dpo__objective": {"name": "slop"}},
            r"no objective 'slop'; did you mean 'slpo'\?",
        ),
        "out of range": (
            {"stages__sft__batch_size": 0},
            r"stages\.sft\.batch_size: .* greater than 0 \(got 0\)",
        ),
        "no such model": ({"model__path": "./nowhere"}, r"no folder \./nowhere"),
        "mesh": ({"mesh": {"data": 3}}, r"mesh: .*'data': 3.* does not fit 8 devices"),
        "indivisible batch": (
            {"stages__sft__batch_size": 12},
            r"batch_size 12 cannot be divided .* set it to 8 or 16",
        ),
        "limits": (
            {"stages__sft__data__max_prompt": 32},
            r"stages\.sft\.data\.max_prompt: leaves no room .* \(got 32\)",
        ),
    },
    "data": {
        "no such file": (None, r"data\.jsonl: no such file; .*did you mean 'dates\.jsonl'\?"),
        "bad line": (
            '{"prompt": "a", "completion": "b"}\n{"prompt"\n',
            r"data\.jsonl line 2: not JSON",
        ),
        "missing column": (
            '{"prompt": "a", "chosen": "b", "rejectd": "c"}\n',
            r"line 1: no 'rejected'; .*did you mean 'rejectd'\?",
        ),
        "empty response": (
            '{"prompt": "a", "completion": " "}\n',
            r"line 1: 'completion' is empty; drop it",
        ),
        "no rows": ("", r"no example is left; it has no rows"),
    },
}


@pytest.mark.parametrize("changes, message", WRONG["recipe"].values(), ids=WRONG["recipe"])
def test_a_wrong_recipe_is_one_error(inputs, refused, tmp_path, changes, message):
    values = h.values(inputs, tmp_path / "run", **changes)
    error = refused("train", h.write_recipe(tmp_path / "recipe.yaml", values))
    assert re.search(message, error)


@pytest.mark.parametrize("text, message", WRONG["data"].values(), ids=WRONG["data"])
def test_wrong_data_are_one_error(inputs, refused, tmp_path, text, message):
    (tmp_path / "dates.jsonl").touch()
    if text is not None:
        (tmp_path / "data.jsonl").write_text(text)
    data = {"stages__sft__data__path": str(tmp_path / "data.jsonl")}
    values = h.values(inputs, tmp_path / "run", "sft", **data)
    error = refused("train", h.write_recipe(tmp_path / "recipe.yaml", values))
    assert re.search(message, error)


def test_a_missing_recipe_is_one_error(refused, tmp_path):
    assert "no.yaml: No such file" in refused("train", tmp_path / "no.yaml")


def test_an_unknown_command_is_one_error(refused):
    assert "no command 'trian'; did you mean 'train'?" in refused("trian")


def test_a_flag_out_of_range_is_one_error(trained, refused):
    error = refused("train", trained[1], "--stages.sft.steps", "0")
    assert "--stages.sft.steps" in error


def test_an_unknown_flag_exits_with_2_and_shows_the_near_one(trained, jaxalign_command):
    code, _, err = jaxalign_command("train", trained[1], "--stages.sft.stepz", "3")
    assert code == 2
    assert "--stages.sft.steps" in err


def test_an_unknown_stage_is_one_error(trained, refused):
    error = refused("evaluate", trained[1], "--stage", "dop")
    assert "stage dop: the recipe has no such stage; did you mean 'dpo'?" in error


@pytest.mark.parametrize(
    "flags", [["evaluate", "--checkpoint", "."], ["export", "--out", "out"], ["reference"]]
)
def test_a_stage_whose_start_is_not_trained_yet_is_one_error(inputs, refused, tmp_path, flags):
    command, *flags = flags
    held_out = {"stages__dpo__data__eval_path": f"{inputs}/held_out.jsonl"}
    values = h.values(inputs, tmp_path / "run", **held_out)
    error = refused(command, h.write_recipe(tmp_path / "recipe.yaml", values), *flags)
    assert "stage dpo: it starts from" in error
    assert "train first" in error


def test_evaluating_a_stage_that_is_not_trained_yet_is_one_error(inputs, refused, tmp_path):
    held_out = {"stages__sft__data__eval_path": f"{inputs}/held_out.jsonl"}
    values = h.values(inputs, tmp_path / "run", "sft", **held_out)
    error = refused("evaluate", h.write_recipe(tmp_path / "recipe.yaml", values))
    assert f"stage sft: {tmp_path}/run/sft/model is not there; train first" in error


@pytest.mark.parametrize("flag", ["--checkpoint", "--against"])
def test_evaluating_a_model_that_is_not_there_is_one_error(trained, refused, flag):
    error = refused("evaluate", trained[1], flag, "./nowhere")
    assert error.startswith(f"jaxalign: {flag[2:]}: no folder ./nowhere")


def test_evaluating_without_held_out_data_is_one_error(inputs, refused, tmp_path):
    values = h.values(inputs, tmp_path / "run", "sft")
    error = refused("evaluate", h.write_recipe(tmp_path / "recipe.yaml", values))
    assert "stages.sft.data.eval_path: give data to evaluate on" in error


def test_a_reference_of_an_objective_without_one_is_one_error(trained, refused):
    assert "'sft' reads no cached reference" in refused("reference", trained[1], "--stage", "sft")


def test_exporting_over_something_is_one_error(stopped, refused, tmp_path):
    assert "choose a new folder" in refused("export", stopped[1], "--out", tmp_path)


def damage(inputs, tmp_path):
    return h.copy_folder(inputs / "model", tmp_path / "model")


def test_weights_of_another_shape_are_one_error(inputs, refused, tmp_path):
    model = damage(inputs, tmp_path)
    (model / "config.json").write_text(json.dumps(h.MODEL | {"intermediate_size": 64}))
    values = h.values(inputs, tmp_path / "run", "sft", model__path=str(model))
    error = refused("train", h.write_recipe(tmp_path / "recipe.yaml", values))
    assert re.search(r"mlp.*got shape \(48, 32\), wanted \(64, 32\) by config\.json", error)


def test_truncated_weights_are_one_error(inputs, refused, tmp_path):
    file = damage(inputs, tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    values = h.values(inputs, tmp_path / "run", "sft", model__path=str(file.parent))
    error = refused("train", h.write_recipe(tmp_path / "recipe.yaml", values))
    assert "model.safetensors: not readable as safetensors" in error


def test_a_truncated_gzip_file_is_one_error(inputs, refused, tmp_path):
    file = tmp_path / "data.jsonl.gz"
    file.write_bytes(gzip.compress((inputs / "pairs.jsonl").read_bytes())[:-20])
    data = {"stages__sft__data__path": str(file)}
    values = h.values(inputs, tmp_path / "run", "sft", **data)
    error = refused("train", h.write_recipe(tmp_path / "recipe.yaml", values))
    assert "not a whole gzip file" in error


@pytest.mark.slow
def test_a_tokenizer_without_a_pad_token_trains(inputs, jaxalign_command, tmp_path):
    file = damage(inputs, tmp_path) / "tokenizer_config.json"
    config = json.loads(file.read_text())
    del config["pad_token"]
    file.write_text(json.dumps(config))
    assert transformers.AutoTokenizer.from_pretrained(file.parent).pad_token is None
    path = str(file.parent)
    values = h.values(inputs, tmp_path / "run", "sft", model__path=path, stages__sft__steps=1)
    code, _, err = jaxalign_command("train", h.write_recipe(tmp_path / "recipe.yaml", values))
    assert code == 0, err


def test_a_folder_that_holds_another_run_is_one_error(trained, refused):
    error = refused("train", trained[1], "--stages.dpo.objective.beta", "0.5")
    assert "holds another run, which differs in\n  stages.dpo.objective.beta: 0.1 -> 0.5" in error


def test_a_damaged_checkpoint_is_one_error_and_stays(stopped, refused, tmp_path):
    folder, recipe, *_ = stopped
    ours = h.copy_folder(folder, tmp_path / "run")
    last = h.sealed(ours / "sft")[-1]
    saved = ours / "sft" / "checkpoints" / f"step-{last:08d}"
    file = max((p for p in saved.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    error = refused("train", recipe, "--run.dir", ours)
    assert f"{saved}: {file.relative_to(saved)} is damaged" in error
    assert h.sealed(ours / "sft") == h.sealed(folder / "sft")


def test_changed_inputs_are_one_error_with_a_table(trained, refused, tmp_path):
    folder, recipe, _ = trained
    ours = h.copy_folder(folder, tmp_path / "run")
    file = ours / "dpo" / "inputs.json"
    record = json.loads(file.read_text())
    record["inputs"]["tokenizer"]["fingerprint"] = "0" * 64
    file.write_text(sealed({k: v for k, v in record.items() if k != SEAL}))
    error = refused("reference", recipe, "--run.dir", ours)
    assert "stage dpo: its inputs are not those that it began with" in error
    assert "tokenizer  SHA-256 000000000000 -> " in error


def test_a_model_that_no_reader_can_find_is_one_error(refused):
    assert "model: no folder ./nowhere" in refused("generate", "./nowhere", "--prompt", "a")


def test_generating_from_no_prompt_is_one_error(trained, refused):
    assert "give one of --prompt and --prompts" in refused("generate", trained[0] / "dpo/model")
