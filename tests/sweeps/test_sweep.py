import csv
import math

import numpy as np
import pytest
from lib import runs as h

import jaxalign
from jaxalign.errors import UserError
from jaxalign.run.train import Stopped
from jaxalign.sweeps import run as sweeping

VARY = {"stages.dpo.objective.beta": [0.1, 0.5], "run.seed": [0, 1]}


def values(inputs, folder, *stages, **changes):
    held_out = {"stages__dpo__data__eval_path": f"{inputs}/held_out.jsonl"}
    return h.values(inputs, folder, *stages, **held_out, **changes)


@pytest.fixture(scope="module")
def swept(inputs, tmp_path_factory):
    """The recipe of a finished sweep, and its results."""
    recipe = values(inputs, tmp_path_factory.mktemp("swept") / "sweep")
    return recipe, jaxalign.sweep(recipe, VARY)


def models(folder):
    return {str(p.relative_to(folder)): p for p in sorted(folder.glob("*/*/model/*.safetensors"))}


@pytest.mark.slow
def test_each_run_has_the_weights_of_the_same_run_alone(swept, tmp_path):
    recipe, found = swept
    for run in found.runs:
        alone = jaxalign.train(recipe, {**run.values, "run.dir": str(tmp_path / run.name)})
        for stage in ("sft", "dpo"):
            ours, theirs = (
                h.tensors(found.folder / run.name / stage / "model"),
                h.tensors(alone.model(stage)),
            )
            assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_equal_stages_and_reference_passes_are_made_once(swept):
    _, found = swept

    def same(file):
        paths = [found.folder / run.name / file for run in found.runs]
        return [[a.samefile(b) for b in paths] for a in paths]

    by_seed = [[i % 2 == j % 2 for j in range(4)] for i in range(4)]
    assert same("sft/model/model.safetensors") == by_seed
    assert same("dpo/reference/train/part-000000000.npz") == by_seed
    alone = [[i == j for j in range(4)] for i in range(4)]
    assert same("dpo/model/model.safetensors") == alone


def test_a_stage_whose_reference_alone_was_there_is_made_once_too(inputs, tmp_path):
    recipe = values(inputs, tmp_path / "sweep", "dpo", "simpo")
    vary = {"stages.simpo.objective.beta": [2.0, 2.5]}
    first = {"run.dir": str(tmp_path / "sweep" / "beta=2.0"), "stages.simpo.objective.beta": 2.0}
    jaxalign.reference(recipe, "dpo", overrides=first)  # as if the sweep had been killed here
    found = jaxalign.sweep(recipe, vary)
    one, two = (found.folder / run.name / "dpo/model/model.safetensors" for run in found.runs)
    assert one.samefile(two)


def test_the_table_has_means_over_seeds(swept):
    _, found = swept
    low, high = found.rows()
    assert (low.values, low.runs, low.failed) == ({"stages.dpo.objective.beta": 0.1}, 2, 0)
    losses = [run.metrics["loss"] for run in found.runs]
    assert high.metrics["loss"].mean == pytest.approx(np.mean(losses[2:]))
    assert high.metrics["loss"].error == pytest.approx(np.std(losses[2:], ddof=1) / math.sqrt(2))
    assert found.metrics()[0] == "rewards/accuracies"


def test_the_metrics_of_a_run_are_its_last_evaluation(swept):
    _, found = swept
    for run in found.runs:
        last = jaxalign.Run(found.folder / run.name).metrics("dpo")["eval/loss"].values[-1]
        assert run.metrics["loss"] == last


def test_the_file_has_a_line_for_each_run(swept):
    _, found = swept
    with (found.folder / "sweep.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["run"] for line in lines] == [run.name for run in found.runs]
    assert [float(line["loss"]) for line in lines] == [r.metrics["loss"] for r in found.runs]
    assert [line["run.seed"] for line in lines] == ["0", "1", "0", "1"]


def test_the_page_has_a_figure_for_each_metric_and_is_whole(swept):
    _, found = swept
    page = (found.folder / "sweep.html").read_text()
    assert page.count("<img") == min(len(found.metrics()), 8)
    assert "beta=0.5,seed=1" in page
    assert page.endswith("</html>\n")


@pytest.mark.slow
def test_a_finished_sweep_trains_nothing_and_more_values_add_runs(swept):
    recipe, found = swept
    before = {name: path.stat() for name, path in models(found.folder).items()}
    more = jaxalign.sweep(recipe, {**VARY, "run.seed": [0, 1, 2]})
    assert len(more.runs) == 6
    assert {k: p.stat() for k, p in models(found.folder).items() if k in before} == before
    again = {run.name: dict(run.metrics) for run in more.runs if run.values["run.seed"] < 2}
    assert again == {run.name: dict(run.metrics) for run in found.runs}


def test_a_folder_that_holds_runs_of_another_recipe_is_refused(swept):
    recipe, _ = swept
    with pytest.raises(UserError, match=r"stages\.dpo\.steps: 6 -> 7"):
        jaxalign.sweep(recipe, VARY, {"stages.dpo.steps": 7})


def test_a_run_that_fails_does_not_end_the_others(inputs, tmp_path):
    recipe = values(inputs, tmp_path / "sweep", "dpo")
    found = jaxalign.sweep(recipe, {"stages.dpo.optimizer.learning_rate": [1e38, 1e-2]})
    failed, finished = found.runs
    assert "loss" in failed.problem
    assert finished.problem == ""
    assert [(row.runs, row.failed) for row in found.rows()] == [(0, 1), (1, 0)]
    assert "1e+38" in (tmp_path / "sweep" / "sweep.csv").read_text()


def test_a_mistake_in_one_combination_is_found_before_the_first_update(inputs, tmp_path):
    recipe = values(inputs, tmp_path / "sweep", "dpo")
    paths = [f"{inputs}/pairs.jsonl", f"{inputs}/no-such.jsonl"]
    with pytest.raises(UserError, match=r"no-such.jsonl"):
        jaxalign.sweep(recipe, {"stages.dpo.data.path": paths})
    assert list((tmp_path / "sweep").glob("*/dpo/checkpoints")) == []


@pytest.mark.slow
def test_a_sweep_that_was_stopped_resumes_to_the_same_weights(swept, tmp_path, monkeypatch):
    recipe, found = swept
    train, calls = sweeping.train, []

    def stop(*args, **options):
        calls.append(args)
        if len(calls) == 2:
            raise Stopped("stopped", 15)
        return train(*args, **options)

    monkeypatch.setattr(sweeping, "train", stop)
    folder = tmp_path / "sweep"
    with pytest.raises(Stopped):
        jaxalign.sweep(recipe, VARY, {"run.dir": str(folder)})
    assert len(models(folder)) == 2
    monkeypatch.undo()
    jaxalign.sweep(recipe, VARY, {"run.dir": str(folder)})
    ours, theirs = models(folder), models(found.folder)
    for name, path in ours.items():
        assert path.read_bytes() == theirs[name].read_bytes()
    assert len(ours) == 8


@pytest.mark.slow
def test_changed_inputs_are_refused_unless_accepted(inputs, tmp_path):
    data = tmp_path / "pairs.jsonl"
    rows = [h.pair(i) for i in range(24)]
    h.write_rows(data, rows)
    recipe = values(inputs, tmp_path / "sweep", "dpo", stages__dpo__data__path=str(data))
    jaxalign.sweep(recipe, {"run.seed": [0]})
    folder = tmp_path / "sweep" / "seed=0" / "dpo"
    (folder / "model").rename(tmp_path / "model")  # as if it had been killed before its export
    h.write_rows(data, rows[::-1])
    with pytest.raises(UserError, match="--accept-changes"):
        jaxalign.sweep(recipe, {"run.seed": [0]})
    found = jaxalign.sweep(recipe, {"run.seed": [0]}, accept_changes=True)
    assert found.runs[0].problem == ""
    assert (folder / "model").exists()


def test_the_command_prints_the_table_and_exits_with_1_if_a_run_failed(
    inputs, tmp_path, jaxalign_command
):
    recipe = h.write_recipe(tmp_path / "recipe.yaml", values(inputs, tmp_path / "sweep", "dpo"))
    rate = "stages.dpo.optimizer.learning_rate"
    code, out, _ = jaxalign_command(
        "sweep", recipe, "--vary", f"{rate}=1e-2", "--vary", "run.seed=0..1"
    )
    assert code == 0
    assert "run 2 of 2: learning_rate=0.01,seed=1" in out
    assert f"table: {tmp_path}/sweep/sweep.html" in out.replace("\n", "")
    code, out, _ = jaxalign_command(
        "sweep", recipe, "--vary", f"{rate}=1e-2,1e38", "--vary", "run.seed=0..1"
    )
    assert code == 1
    assert out.count(" failed: ") == 2


def test_the_command_without_anything_that_varies_is_refused(inputs, tmp_path, refused):
    recipe = h.write_recipe(tmp_path / "recipe.yaml", values(inputs, tmp_path / "sweep", "dpo"))
    assert "nothing varies" in refused("sweep", recipe)
