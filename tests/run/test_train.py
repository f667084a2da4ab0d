import dataclasses
import json
import math
import os
import re
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from lib import runs as h
from safetensors.numpy import save_file

from jaxalign.core.sharding import make_mesh
from jaxalign.errors import RunError, UserError
from jaxalign.hf.load import load_params
from jaxalign.recipe.read import dump
from jaxalign.run import held_out, train
from jaxalign.run.evaluate import evaluator
from jaxalign.run.export import newest_state
from jaxalign.run.open_stage import evaluate_stage
from jaxalign.run.tracking import Tracker
from jaxalign.settings import Mesh

MESH = h.one_device()


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    """An uninterrupted run: (recipe, folder, what was printed)."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    recipe = h.recipe(inputs, folder, stages__dpo__data__eval_path=f"{inputs}/held_out.jsonl")
    return recipe, folder, h.run(recipe, MESH)


@pytest.fixture
def at_log(monkeypatch):
    """`at_log(stage, step, action)`: the metrics of an update are written, then `action()`."""

    def install(stage, step, action):
        written = Tracker.log

        def log(self, at, metrics, *, evaluation=False):
            written(self, at, metrics, evaluation=evaluation)
            if (self.path.parent.name, at) == (stage, step) and not evaluation:
                monkeypatch.undo()
                action()

        monkeypatch.setattr(Tracker, "log", log)

    return install


class Crash(Exception):  # noqa: N818
    pass


def crash():
    raise Crash


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def assert_same_models(ours, theirs, *stages):
    for stage in stages:
        chex.assert_trees_all_equal(
            h.tensors(ours / stage / "model"), h.tensors(theirs / stage / "model")
        )


# What a run leaves


def test_every_update_has_its_metrics(finished):
    _, folder, _ = finished
    for stage, names in {
        "sft": {"loss", "grad_norm", "learning_rate"},
        "dpo": {"loss", "grad_norm", "learning_rate", "rewards/chosen", "rewards/accuracies"},
    }.items():
        lines = [m for m in h.metrics(folder / stage) if "loss" in m]
        assert [m["step"] for m in lines] == list(range(1, h.STEPS[stage] + 1))
        assert all(names <= set(m) for m in lines)


def test_the_share_of_tokens_that_sharing_prompts_saved_is_logged(finished):
    recipe, folder, _ = finished
    stage = h.prepared(recipe, "dpo", MESH)
    items = [stage.train[i] for i in stage.loader(stage.train).indices(0)]
    apart = sum(len(x.prompt) + len(branch.ids) for x in items for branch in x.branches)
    first = h.metrics(folder / "dpo")[0]
    assert first["shared"] == pytest.approx(1 - first["tokens"] / apart)
    assert 0.1 < first["shared"] < 0.5
    assert {m["shared"] for m in h.metrics(folder / "sft") if "loss" in m} == {0}


def test_the_first_loss_of_dpo_is_log_2(finished):
    first = h.metrics(finished[1] / "dpo")[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    # The reference pass packs other rows, so its sums may differ in the last digit of float32.
    digit = np.spacing(np.float32(max(abs(first["logps/chosen"]), abs(first["logps/rejected"]))))
    assert abs(first["rewards/margins"]) <= 0.1 * digit  # beta


def test_training_lowers_the_loss(finished):
    for stage in h.STEPS:
        lines = [m for m in h.metrics(finished[1] / stage) if "loss" in m]
        assert lines[-1]["loss"] < lines[0]["loss"] - 0.3


def test_held_out_data_is_evaluated_at_the_end(finished):
    evaluations = [m for m in h.metrics(finished[1] / "dpo") if "eval/loss" in m]
    assert [m["step"] for m in evaluations] == [h.STEPS["dpo"]]


def test_held_out_metrics_are_in_the_model_card(finished):
    _, folder, _ = finished
    value = h.metrics(folder / "dpo")[-1]["eval/loss"]
    assert f"| loss | {value:.6g} |" in (folder / "dpo" / "model" / "README.md").read_text()


def test_the_exported_model_is_the_last_state(finished):
    recipe, folder, _ = finished
    stage = h.prepared(recipe, "dpo", MESH)
    step, state = newest_state(stage)
    assert step == h.STEPS["dpo"]
    chex.assert_trees_all_equal(load_params(folder / "dpo" / "model", stage.model), state.params)


def test_the_exported_model_loads_in_transformers(finished):
    folder = finished[1] / "dpo" / "model"
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    for name, tensor in h.tensors(folder).items():
        np.testing.assert_array_equal(loaded[name].numpy(), tensor)
    assert transformers.AutoTokenizer.from_pretrained(folder).decode([16]) == "1"


def test_an_export_that_rounds_the_training_away_says_so(inputs, tmp_path):
    folder = h.copy_folder(inputs, tmp_path / "inputs")
    model = folder / "model"
    rounded = {k: v.astype(jnp.bfloat16) for k, v in h.tensors(model).items()}
    save_file(rounded, model / "model.safetensors", metadata={"format": "pt"})
    rate = {"stages__sft__optimizer__learning_rate": 1e-5}
    printed = h.run(h.recipe(folder, tmp_path / "run", "sft", **rate), MESH)
    kept = re.search(r"export in (bfloat16 keeps \S+ % of the change of the weights)", printed)
    assert "set model.export_dtype to float32" in printed
    assert kept[1] in (tmp_path / "run/sft/model/README.md").read_text()
    exact = {"model__export_dtype": "float32"}
    printed = h.run(h.recipe(folder, tmp_path / "exact", "sft", **rate, **exact), MESH)
    assert "of the change" not in printed


@pytest.mark.parametrize(
    "lora", [None, pytest.param({"rank": 4, "alpha": 8.0}, marks=pytest.mark.slow)]
)
def test_the_last_held_out_metrics_are_of_the_exported_weights(inputs, tmp_path, lora):
    changes = {"data__eval_path": f"{inputs}/held_out.jsonl", "lora": lora}
    changes |= {"optimizer__learning_rate": 1e-4, "reference": {"mode": "live"}}
    stage = {f"stages__dpo__{name}": value for name, value in changes.items()}
    recipe = h.recipe(inputs, tmp_path / "run", "dpo", model__export_dtype="bfloat16", **stage)
    h.run(recipe, MESH)
    found = evaluate_stage(recipe, "dpo", MESH, h.QUIET)
    last = h.metrics(tmp_path / "run/dpo")[-1]
    noise = 1e-5 * found["loss"]
    assert {k: last[f"eval/{k}"] for k in found} == pytest.approx(found, rel=1e-5, abs=noise)
    card = (tmp_path / "run/dpo/model/README.md").read_text()
    assert f"| loss | {last['eval/loss']:.6g} |" in card


def test_the_recipe_in_the_folder_of_the_run_is_the_resolved_one(finished):
    recipe, folder, _ = finished
    assert (folder / "recipe.yaml").read_text() == dump(recipe)


@pytest.mark.slow
def test_every_shape_of_batch_is_counted_as_a_compilation(inputs, tmp_path):
    long = {"prompt": "0+0=", "completion": "zero, as far as I know"}
    short = [{"prompt": "0+0=", "completion": "0"}] * (h.TRAIN - 1)
    h.write_rows(tmp_path / "data.jsonl", [*short, long])
    data = {"path": str(tmp_path / "data.jsonl"), "row_length": 16}
    recipe = h.recipe(inputs, tmp_path / "run", "sft", stages__sft__data=data)
    h.run(recipe, MESH)
    stage = h.prepared(recipe, "sft", MESH)
    loader = stage.loader(stage.train)
    shapes = [{b.ids.shape + b.source.shape for b in loader.batches(0, n)} for n in range(1, 5)]
    assert [m["compiles"] for m in h.metrics(tmp_path / "run" / "sft")] == list(map(len, shapes))
    assert len(shapes[-1]) > 1


# The folder of a run


def test_a_finished_stage_is_not_trained_again(finished):
    recipe, folder, _ = finished
    before = {p: p.stat().st_mtime_ns for s in h.STEPS for p in (folder / s).rglob("*")}
    assert "dpo: finished before" in h.run(recipe, MESH)
    assert {p: p.stat().st_mtime_ns for s in h.STEPS for p in (folder / s).rglob("*")} == before


def test_a_folder_that_holds_another_run_is_refused_with_the_difference(finished, inputs):
    other = h.recipe(inputs, finished[1], stages__dpo__batch_size=16)
    with pytest.raises(UserError) as error:
        h.run(other, MESH)
    assert "holds another run" in str(error.value)
    assert "stages.dpo.batch_size" in str(error.value)
    assert "stages.sft" not in str(error.value)


def test_settings_that_change_no_parameter_may_change(finished, inputs):
    other = h.recipe(
        inputs,
        finished[1],
        run__log_every=2,
        mesh={"data": 1, "fsdp": 1, "tensor": 1},
        stages__dpo__data__eval_path=f"{inputs}/held_out.jsonl",
    )
    assert "dpo: finished before" in h.run(other, MESH)
    h.run(finished[0], MESH)  # puts the recipe back


def test_a_folder_that_holds_something_else_is_refused(inputs, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not empty and holds no run"):
        h.run(h.recipe(inputs, tmp_path), MESH)


def test_stages_in_another_order_are_another_run(finished):
    recipe = finished[0]
    stages = dict(reversed(recipe.stages.items()))
    with pytest.raises(UserError, match=r"stages: \['sft', 'dpo'\] -> \['dpo', 'sft'\]"):
        train.claim(dataclasses.replace(recipe, stages=stages))


def test_a_stage_may_be_added_after_those_that_have_begun_and_not_before(finished, tmp_path):
    recipe, folder, _ = finished
    for path in ("recipe.yaml", "sft", "dpo"):
        (tmp_path / path).symlink_to(folder / path)
    ours = h.replaced(recipe, tmp_path)
    more = {"more": recipe.stages["sft"]}
    with pytest.raises(UserError, match="stages: "):
        train.claim(dataclasses.replace(ours, stages=more | recipe.stages))
    train.claim(dataclasses.replace(ours, stages=recipe.stages | more))


@pytest.mark.slow
def test_a_mistake_in_a_stage_that_has_not_begun_can_be_mended(inputs, tmp_path):
    mistaken = h.recipe(inputs, tmp_path / "run", stages__dpo__data__path="nowhere.jsonl")
    with pytest.raises(UserError, match=r"nowhere\.jsonl"):
        h.run(mistaken, MESH)
    h.run(h.recipe(inputs, tmp_path / "run"), MESH)
    assert (tmp_path / "run/dpo/model").is_dir()


def test_a_folder_in_which_nothing_has_begun_may_be_taken_by_any_recipe(inputs, tmp_path):
    train.claim(h.recipe(inputs, tmp_path / "run", run__seed=1, model__path="nowhere"))
    recipe = h.recipe(inputs, tmp_path / "run", "sft")
    train.claim(recipe)
    assert (tmp_path / "run" / "recipe.yaml").read_text() == dump(recipe)


def test_a_folder_left_by_a_kill_in_the_first_moment_is_taken(inputs, tmp_path):
    (tmp_path / "recipe.yaml.tmp").touch()
    train.claim(h.recipe(inputs, tmp_path))
    assert (tmp_path / "recipe.yaml").exists()


# Stopping and going on


def test_sigterm_saves_and_the_resumed_run_ends_bit_equal(finished, at_log, tmp_path):
    recipe, folder, _ = finished
    ours = h.replaced(recipe, tmp_path / "run")
    at_log("dpo", 3, terminate)
    with pytest.raises(train.Stopped, match="dpo: stopped and saved after update 4"):
        h.run(ours, MESH)
    assert h.sealed(tmp_path / "run" / "dpo")[-1] == 4
    assert "resumes after update 4 of 6" in h.run(ours, MESH)
    assert_same_models(tmp_path / "run", folder, "sft", "dpo")


@pytest.mark.slow
def test_a_run_that_crashed_between_saves_ends_bit_equal(finished, at_log, tmp_path):
    recipe, folder, _ = finished
    again = h.replaced(recipe, tmp_path / "run")
    at_log("dpo", 5, crash)
    with pytest.raises(Crash):
        h.run(again, MESH)
    assert "resumes after update 4 of 6" in h.run(again, MESH)
    assert_same_models(tmp_path / "run", folder, "dpo")
    for stage in h.STEPS:
        ours, theirs = (h.metrics(run / stage) for run in (tmp_path / "run", folder))
        assert h.repeated(ours) == h.repeated(theirs)


def test_sigterm_in_the_last_evaluation_does_not_start_the_next_stage(
    inputs, monkeypatch, tmp_path
):
    recipe = h.recipe(
        inputs, tmp_path / "run", stages__sft__data__eval_path=f"{inputs}/held_out.jsonl"
    )

    def terminating(*args):
        evaluate = evaluator(*args)

        def run(*args):
            terminate()
            return evaluate(*args)

        return run

    monkeypatch.setattr(held_out, "evaluator", terminating)
    with pytest.raises(train.Stopped, match="sft: stopped and saved after update 4"):
        h.run(recipe, MESH)
    assert not (tmp_path / "run" / "dpo").exists()
    assert not (tmp_path / "run" / "sft" / "model").exists()


def test_a_stage_that_was_killed_before_its_export_is_only_exported(inputs, monkeypatch, tmp_path):
    recipe = h.recipe(inputs, tmp_path / "run", "sft")
    with monkeypatch.context() as patch:
        patch.setattr(train.export, "write_model", lambda *args, **kwargs: crash())
        with pytest.raises(Crash):
            h.run(recipe, MESH)
    lines = h.metrics(tmp_path / "run" / "sft")
    h.run(recipe, MESH)
    assert h.metrics(tmp_path / "run" / "sft") == lines
    stage = h.prepared(recipe, "sft", MESH)
    chex.assert_trees_all_equal(
        load_params(tmp_path / "run" / "sft" / "model", stage.model), newest_state(stage)[1].params
    )


@pytest.mark.slow
def test_the_state_of_an_objective_is_saved_and_survives_a_crash(inputs, at_log, tmp_path):
    runs = tmp_path / "whole", tmp_path / "crashed"
    whole, crashed = (h.recipe(inputs, run, "bco") for run in runs)
    h.run(whole, MESH)
    at_log("bco", 3, crash)
    with pytest.raises(Crash):
        h.run(crashed, MESH)
    h.run(crashed, MESH)
    states = [newest_state(h.prepared(r, "bco", MESH))[1].objective_state for r in (whole, crashed)]
    chex.assert_trees_all_equal(*states)
    assert any(np.any(np.asarray(x) != 0) for x in jax.tree.leaves(states[0]))
    assert_same_models(*runs, "bco")


@pytest.mark.slow
def test_a_run_goes_on_on_another_mesh_to_the_same_parameters(finished, at_log, tmp_path):
    recipe, folder, _ = finished
    ours = h.replaced(recipe, tmp_path / "run")
    at_log("dpo", 3, terminate)
    with pytest.raises(train.Stopped):
        h.run(ours, MESH)
    h.run(ours, make_mesh(Mesh(data=2, fsdp=2, tensor=2)))
    chex.assert_trees_all_close(
        h.tensors(tmp_path / "run" / "dpo" / "model"),
        h.tensors(folder / "dpo" / "model"),
        atol=1e-4,
    )


# Losses that are not finite


def test_a_loss_of_nan_stops_the_run_and_keeps_the_good_checkpoint(inputs, tmp_path):
    recipe = h.recipe(
        inputs, tmp_path / "run", "sft", stages__sft__optimizer={"learning_rate": 1e30}
    )
    with pytest.raises(RunError, match=r"update (\d).* not finite.*last checkpoint is intact"):
        h.run(recipe, MESH)
    (described,) = (tmp_path / "run" / "sft").glob("not_finite-*.json")
    record = json.loads(described.read_text())
    assert all(step < record["step"] for step in h.sealed(tmp_path / "run" / "sft"))
    assert not (tmp_path / "run" / "sft" / "model").exists()


def test_a_batch_that_gave_nan_is_described_on_disk(inputs, tmp_path):
    broken = h.copy_folder(inputs / "model", tmp_path / "model")
    h.edit_tensors(broken, lambda tensors: tensors["model.norm.weight"].fill(np.nan))
    recipe = h.recipe(inputs, tmp_path / "run", "sft", model__path=str(broken))
    with pytest.raises(RunError, match="update 1"):
        h.run(recipe, MESH)
    record = json.loads((tmp_path / "run" / "sft" / "not_finite-00000001.json").read_text())
    stage = h.prepared(recipe, "sft", MESH)
    assert sorted(record["example"]) == sorted(stage.loader(stage.train).indices(0))
    assert h.sealed(tmp_path / "run" / "sft") == []
