"""Whole runs with adapters: what is saved, gone on from, written and refused."""

import json
import math
import shutil

import chex
import numpy as np
import peft
import pytest
import torch
import transformers
from lib import runs as h
from safetensors.numpy import load_file

from jaxalign.core.sharding import make_mesh
from jaxalign.errors import UserError
from jaxalign.recipe.read import dump, parse, read

pytestmark = pytest.mark.slow

RANK = 4
LORA = {"rank": RANK, "alpha": 8.0}


def values(inputs, folder, **changes):
    """Two stages with adapters; the second one's reference is the model it starts from."""
    options = {f"stages__{name}__lora": dict(LORA) for name in ("sft", "dpo")}
    options["stages__dpo__reference"] = {"mode": "live"}
    options["stages__dpo__data__eval_path"] = f"{inputs}/held_out.jsonl"
    return h.values(inputs, folder, **options | changes)


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    """The folder of a finished run with adapters, and its recipe."""
    folder = tmp_path_factory.mktemp("lora")
    recipe = h.write_recipe(folder / "recipe.yaml", values(inputs, folder / "run"))
    h.run(read(recipe, []), h.one_device())
    return folder / "run", recipe


def adapter(stage):
    return load_file(stage / "adapter" / "adapter_model.safetensors")


def torch_logits(model, ids):
    with torch.no_grad():
        return model.eval()(torch.tensor(ids)).logits.numpy()


def test_adapter_and_merged_model_are_the_same_in_transformers(finished):
    folder, _ = finished
    ids = np.random.default_rng(0).integers(0, h.MODEL["vocab_size"], (3, 12))
    for name in ("sft", "dpo"):
        stage = folder / name
        base = json.loads((stage / "adapter" / "adapter_config.json").read_text())
        base = base["base_model_name_or_path"]
        open_model = transformers.AutoModelForCausalLM.from_pretrained
        before = torch_logits(open_model(base), ids)
        merged = torch_logits(open_model(stage / "model"), ids)
        beside = torch_logits(
            peft.PeftModel.from_pretrained(open_model(base), stage / "adapter"), ids
        )
        np.testing.assert_allclose(merged, beside, atol=1e-4)
        assert np.abs(merged - before).max() > 1e-2
        if name == "dpo":
            assert base == str(folder / "sft" / "model")


def test_a_live_reference_is_the_start_of_the_stage(finished):
    first = h.metrics(finished[0] / "dpo")[0]
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-6)
    assert h.metrics(finished[0] / "dpo")[-1]["eval/rewards/margins"] > 0


def test_a_cached_reference_gives_the_losses_of_a_live_one(finished, inputs, tmp_path):
    ours = h.copy_folder(finished[0], tmp_path / "run")
    shutil.rmtree(ours / "dpo")
    h.run(parse(values(inputs, ours, stages__dpo__reference={"mode": "cached"})), h.one_device())
    live, cached = (h.metrics(folder / "dpo") for folder in (finished[0], ours))
    for a, b in zip(live, cached, strict=True):
        key = "loss" if "loss" in a else "eval/loss"
        assert b[key] == pytest.approx(a[key], abs=2e-5)


def test_a_checkpoint_holds_adapters_alone(finished):
    stage = finished[0] / "dpo"
    saved = json.loads((stage / "checkpoints" / "step-00000006" / "_METADATA").read_text())
    arrays = saved["tree_metadata"].values()
    shapes = [x["value_metadata"].get("write_shape") for x in arrays]
    numbers = sum(math.prod(shape) for shape in shapes if shape is not None)
    # Adam's two moments beside each; its count, the schedule's, and the number of updates.
    assert numbers == 3 * sum(x.size for x in adapter(stage).values()) + 3


def test_going_on_gives_the_same_bits(finished, tmp_path):
    folder, recipe = finished
    ours = h.copy_folder(folder, tmp_path / "run")
    for path in (ours / "dpo" / "model", ours / "dpo" / "adapter"):
        shutil.rmtree(path)
    for path in (ours / "dpo" / "checkpoints").glob("step-00000006*"):
        path.unlink() if path.is_file() else shutil.rmtree(path)
    again = h.replaced(read(recipe, []), ours)
    text = h.run(again, h.one_device())
    assert "resumes after update 4 of 6" in text
    chex.assert_trees_all_equal(adapter(ours / "dpo"), adapter(folder / "dpo"))
    chex.assert_trees_all_equal(
        h.tensors(ours / "dpo" / "model"), h.tensors(folder / "dpo" / "model")
    )
    assert h.repeated(h.metrics(ours / "dpo")) == h.repeated(h.metrics(folder / "dpo"))


def test_eight_devices_train_the_same_adapters(finished, inputs, tmp_path):
    recipe = parse(values(inputs, tmp_path / "run") | {"mesh": {"data": 2, "fsdp": 2, "tensor": 2}})
    h.run(recipe, make_mesh(recipe.mesh))
    for name in ("sft", "dpo"):
        ours, theirs = adapter(tmp_path / "run" / name), adapter(finished[0] / name)
        chex.assert_trees_all_close(ours, theirs, atol=1e-4)


def test_evaluate_gives_the_last_evaluation_of_training(finished, jaxalign_command):
    folder, recipe = finished
    last = h.metrics(folder / "dpo")[-1]
    for options in ((), ("--checkpoint", folder / "dpo" / "adapter")):
        code, out, err = jaxalign_command("evaluate", recipe, *options)
        assert code == 0, err
        printed = dict(line.split() for line in out.splitlines() if line.startswith("rewards/m"))
        margins = float(printed["rewards/margins"])
        assert margins == pytest.approx(last["eval/rewards/margins"], rel=1e-3)


def test_generate_answers_with_an_adapter_as_with_the_merged_model(finished, jaxalign_command):
    folder, _ = finished
    how = ("--prompt", "1+1=", "--max-new", 8, "--temperature", 0, "--dtype", "float32")
    outs = [
        jaxalign_command("generate", folder / "dpo" / kind, *how) for kind in ("adapter", "model")
    ]
    assert outs[0][:2] == outs[1][:2]
    assert outs[0][0] == 0


def test_export_writes_either(finished, jaxalign_command, tmp_path):
    folder, recipe = finished
    ours = h.copy_folder(folder, tmp_path / "run")
    shutil.rmtree(ours / "dpo" / "model")
    for options, name in (((), "model"), (("--adapter",), "adapter")):
        out = ("--out", tmp_path / name, "--run.dir", ours)
        code, text, err = jaxalign_command("export", recipe, *out, *options)
        assert code == 0, err
        assert f"the {name} after update 6 is in {tmp_path / name}" in text
    chex.assert_trees_all_equal(h.tensors(tmp_path / "model"), h.tensors(folder / "dpo" / "model"))
    found = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    chex.assert_trees_all_equal(found, adapter(folder / "dpo"))


def test_a_stage_without_adapters_has_none_to_export(trained, refused, tmp_path):
    message = refused("export", trained[1], "--adapter", "--out", tmp_path / "out")
    assert "--adapter: stage dpo has no `lora`; leave the flag out" in message


def test_a_target_that_the_model_lacks_is_refused(inputs, tmp_path):
    recipe = parse(values(inputs, tmp_path / "run", stages__sft__lora={"targets": ["q_prj"]}))
    with pytest.raises(UserError, match=r"stages.sft.lora.targets: .* did you mean 'q_proj'"):
        h.prepared(recipe, "sft", h.one_device())


@pytest.mark.parametrize(
    "lora, message",
    [
        ({"rank": 0}, "stages.sft.lora.rank: Input should be greater than 0"),
        ({"alpha": -1}, "stages.sft.lora.alpha: Input should be greater than 0"),
        ({"rnak": 8}, "stages.sft.lora.rnak: unknown; did you mean 'rank'"),
    ],
)
def test_wrong_settings_are_refused_with_their_path(inputs, tmp_path, lora, message):
    with pytest.raises(UserError, match=message):
        parse(values(inputs, tmp_path / "run", stages__sft__lora=lora))


def test_a_recipe_with_adapters_is_dumped_and_read_again(inputs, tmp_path):
    lora = LORA | {"targets": ["q_proj", "value"]}
    recipe = parse(values(inputs, tmp_path / "run", stages__sft__lora=lora))
    (tmp_path / "again.yaml").write_text(dump(recipe))
    assert read(str(tmp_path / "again.yaml"), []) == recipe
    flags = ["--stages.sft.lora.rank", "2", "--stages.sft.lora.targets", "up", "down"]
    changed = read(str(tmp_path / "again.yaml"), flags).stages["sft"].lora
    assert (changed.rank, changed.targets) == (2, ("up", "down"))


def test_the_command_line_trains_the_same_adapters(finished, inputs, compile_cache, tmp_path):
    recipe = h.write_recipe(tmp_path / "recipe.yaml", values(inputs, tmp_path / "run"))
    process = h.cli("train", recipe, cache=compile_cache)
    assert (process.returncode, process.stderr) == (0, "")
    for name in ("sft", "dpo"):
        ours, theirs = adapter(tmp_path / "run" / name), adapter(finished[0] / name)
        chex.assert_trees_all_close(ours, theirs, atol=1e-5)
