"""A mistake in any stage is found before the first one trains."""

import dataclasses
import io
import shutil
from collections import namedtuple

import pytest
from lib import runs as h
from rich.console import Console

from jaxalign.core.sharding import make_mesh
from jaxalign.errors import RunError, UserError
from jaxalign.recipe.read import parse
from jaxalign.run import room
from jaxalign.run.dry_run import dry_run
from jaxalign.run.phases import Phases
from jaxalign.run.preflight import check_stages
from jaxalign.run.room import Need, check_writable, peak
from jaxalign.settings import Mesh

MESH = h.one_device()
GIB = 2**30


def row(**changes):
    return h.pair(0) | changes


MISTAKES = {
    "a missing file": ({"data__path": "nowhere.jsonl"}, r"stage dpo: nowhere\.jsonl: no such file"),
    "an empty response": (
        {"data__path": "bad.jsonl"},
        r"stage dpo: .*bad\.jsonl line 2: 'rejected' is empty",
    ),
    "a missing held-out file": ({"data__eval_path": "nowhere.jsonl"}, r"stage dpo: nowhere\.jsonl"),
    "a length over the positions of the model": (
        {"data__path": "long.jsonl", "data__max_length": 100},
        r"^stages\.dpo\.data\.max_length: a prompt with its response has 100 tokens",
    ),
    "an adapter target": (
        {"lora": {"targets": ["q_prj"]}},
        r"stages\.dpo\.lora\.targets: .* no linear layer 'q_prj'; did you mean 'q_proj'",
    ),
    "a quantized base": (
        {"lora": {"quantize": "nf4"}},
        r"^stages\.dpo\.lora\.quantize: nf4 takes 64 rows at a time.*does not divide the 32 rows",
    ),
    "an optimizer": (
        {"optimizer": {"name": "sgd", "weight_decay": 0.1}},
        r"^stages\.dpo\.optimizer\.weight_decay: sgd does not read it",
    ),
    "a warm-up longer than the epochs": (
        {"steps": None, "optimizer": {"warmup": 9}},
        r"^stages\.dpo\.optimizer\.warmup: 9 updates of warm-up in a stage of 3",
    ),
    "a missing reference": (
        {"reference": {"path": "./nowhere"}},
        r"^stages\.dpo\.reference\.path: no folder \./nowhere",
    ),
    "a balance of no experts": (
        {"router_balance": 0.1},
        r"^stages\.dpo\.router_balance: got 0\.1, but model_type 'llama' has no experts",
    ),
    "a damaged reference": (
        {"reference": {"path": "damaged"}},
        r"^stage dpo: .*damaged/model\.safetensors: not readable as safetensors",
    ),
    "another architecture of a live reference": (
        {"reference": {"path": "deeper", "mode": "live"}},
        r"^stages\.dpo\.reference: .*deeper is another architecture than the policy",
    ),
}


@pytest.fixture(scope="module")
def flawed(inputs, tmp_path_factory):
    """A folder with data and checkpoints that no stage can use."""
    folder = tmp_path_factory.mktemp("flawed")
    h.write_rows(folder / "bad.jsonl", [row(), row(rejected=" ")])
    h.write_rows(folder / "long.jsonl", [row(chosen="x" * 120)])
    damaged = h.copy_folder(inputs / "model", folder / "damaged")
    (damaged / "model.safetensors").write_bytes(b"nothing")
    deeper = h.copy_folder(inputs / "model", folder / "deeper")
    text = (deeper / "config.json").read_text()
    layers = h.MODEL["num_hidden_layers"]
    old, new = f'"num_hidden_layers": {layers}', f'"num_hidden_layers": {layers + 1}'
    assert old in text
    (deeper / "config.json").write_text(text.replace(old, new))
    return folder


def changed(inputs, folder, changes, flawed=None):
    """A recipe of two stages, its second one changed."""
    found = {f"stages__dpo__{name}": value for name, value in changes.items()}
    values = h.values(inputs, folder, **found)
    stage = values["stages"]["dpo"]
    for section in (stage["data"], stage.get("reference", {})):
        path = section.get("path", "")
        if flawed and (flawed / path).exists():
            section["path"] = str(flawed / path)
    return parse(values)


@pytest.mark.parametrize(("changes", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_a_later_stage_costs_no_training(inputs, flawed, tmp_path, changes, message):
    recipe = changed(inputs, tmp_path / "run", changes, flawed)
    with pytest.raises(UserError, match=message):
        h.run(recipe, MESH)
    assert not (tmp_path / "run/sft").exists()


def test_a_batch_that_the_mesh_cannot_cut_costs_no_training(inputs, tmp_path):
    recipe = changed(inputs, tmp_path / "run", {"batch_size": 9})
    mesh = make_mesh(Mesh(data=8))
    with pytest.raises(UserError, match=r"^stages\.dpo\.batch_size 9 cannot be divided"):
        h.run(recipe, mesh)


def test_damaged_weights_are_refused_before_the_reference_pass(inputs, flawed, tmp_path):
    recipe = h.recipe(inputs, tmp_path / "run", "dpo", model__path=str(flawed / "deeper"))
    with pytest.raises(UserError, match=r"tensor '.*' is missing"):
        h.run(recipe, MESH)
    assert not (tmp_path / "run/dpo").exists()


def test_a_finished_stage_is_not_checked_again(inputs, tmp_path):
    recipe = changed(inputs, tmp_path / "run", {})
    shutil.copytree(inputs / "model", tmp_path / "run/sft/model")
    missing = dataclasses.replace(recipe.stages["sft"].data, path="nowhere.jsonl")
    sft = dataclasses.replace(recipe.stages["sft"], data=missing)
    recipe = dataclasses.replace(recipe, stages=recipe.stages | {"sft": sft})
    check_stages(recipe, MESH, h.QUIET, {"dpo": Phases(tmp_path / "run/dpo", "dpo", h.QUIET)})


# Room on the disk


def needed(checkpoint, model, there=0):
    return Need(checkpoint, most=3, left=2, reference=1, model=model, there=there)


def test_the_most_bytes_of_a_run_are_those_of_its_largest_stage_after_the_others():
    assert peak([needed(10, 5)]) == 31
    assert peak([needed(10, 50)]) == 71
    assert peak([needed(10, 5), needed(10, 5)]) == 26 + 31
    assert peak([needed(10, 5, there=20)]) == 11


def test_the_bytes_of_a_checkpoint_are_those_on_the_disk(inputs, tmp_path):
    recipe = h.recipe(inputs, tmp_path / "run", "sft", stages__sft__keep=1)
    h.run(recipe, MESH)
    found = room.need(h.prepared(recipe, "sft", MESH))
    (saved,) = (p for p in (tmp_path / "run/sft/checkpoints").iterdir() if p.is_dir())
    written = sum(p.stat().st_size for p in saved.rglob("*") if p.is_file())
    assert 0.8 * found.checkpoint < written < 1.2 * found.checkpoint
    assert (found.most, found.left) == (2, 1)
    exported = (tmp_path / "run/sft/model/model.safetensors").stat().st_size
    assert found.model == pytest.approx(exported, rel=0.01)


def test_a_run_that_the_disk_has_no_room_for_is_refused(inputs, monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: usage(GIB, GIB, 1000))
    with pytest.raises(RunError, match=r"has 0\.0 MiB free, and the run needs \d.*sft: 2 x .*keep"):
        h.run(h.recipe(inputs, tmp_path / "run", "sft", stages__sft__steps=4), MESH)
    assert not (tmp_path / "run/sft").exists()


@pytest.mark.parametrize("inner", ["", "/deeper"])
def test_a_folder_of_the_run_that_is_a_file_is_named(inputs, tmp_path, inner):
    (tmp_path / "run").touch()
    with pytest.raises(UserError, match=r"^run\.dir: .*/run is a file; choose another folder"):
        h.run(h.recipe(inputs, tmp_path / f"run{inner}", "sft"), MESH)


def test_a_folder_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(room.os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=r"^run\.dir: .* is not writable; .*/run\)$"):
        check_writable(tmp_path / "run", "run.dir")


# The plan of a run


def planned(recipe):
    out = io.StringIO()
    dry_run(recipe, recipe, MESH, Console(file=out, width=200), accept_changes=False)
    return out.getvalue()


def test_a_dry_run_says_what_a_run_would_do_and_writes_nothing_into_its_folder(inputs, tmp_path):
    changes = {"data__eval_path": f"{inputs}/held_out.jsonl", "lora": {"rank": 2}}
    text = planned(changed(inputs, tmp_path / "run", changes))
    assert not (tmp_path / "run").exists()
    sft, dpo = text.split("\ndpo: dpo")
    assert f"start      {inputs}/model" in sft
    assert "start      the model of sft" in dpo
    assert f"pairs.jsonl: {h.TRAIN} examples" in sft
    assert f"held_out.jsonl: {h.HELD_OUT} examples" in dpo
    assert f"updates    {h.STEPS['sft']}, of {h.BATCH} examples in 1 microbatches" in sft
    assert "trains     all" in sft
    assert "trains     adapters of" in dpo
    assert "reference  cached, the start" in dpo
    assert "memory     an update takes" in sft
    assert "MiB of checkpoints" in dpo
    assert "is free; nothing was written" in dpo


def test_a_dry_run_finds_a_mistake_in_a_later_stage(inputs, flawed, tmp_path):
    recipe = changed(inputs, tmp_path / "run", {"data__path": "bad.jsonl"}, flawed)
    with pytest.raises(UserError, match="'rejected' is empty"):
        planned(recipe)
