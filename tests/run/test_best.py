"""`keep_best`: the best update by a held-out metric is exported, and a stage may stop early."""

import dataclasses
import io
import json

import chex
import pytest
from lib import runs as h
from rich.console import Console

from jaxalign.errors import RunError, UserError
from jaxalign.hf.load import load_params
from jaxalign.recipe.read import parse
from jaxalign.report import terminal, write_report
from jaxalign.run.best import Best, exported_update
from jaxalign.run.checkpoint import Checkpoints
from jaxalign.run.open_stage import evaluate_stage
from jaxalign.run.phases import Phases
from jaxalign.run.preflight import check_stages
from jaxalign.run.room import need
from jaxalign.run.tracking import Tracker

MESH = h.one_device()


METRIC = "loss"


def values(inputs, folder, *, best=None, steps=12, **changes):
    """A stage of DPO that is evaluated after every update.

    Its loss is lowest after the second one, by more than rounding moves it: with smoothed labels
    there is a best margin, which a learning rate that rises without end soon leaves behind.
    """
    stage = {
        "objective": {"name": "dpo", "label_smoothing": 0.1},
        "data__eval_path": f"{inputs}/held_out.jsonl",
        "eval_every": 1,
        "save_every": 4,
        "keep": 1,
        "optimizer__learning_rate": 1.2,
        "optimizer__warmup": steps,
        "steps": steps,
        "keep_best": {"metric": METRIC} | (best or {}),
    } | changes
    return h.values(inputs, folder, "dpo", **{f"stages__dpo__{k}": v for k, v in stage.items()})


def held_out(folder, name=METRIC):
    """{update: held-out value}."""
    lines = h.metrics(folder / "dpo")
    return {m["step"]: m[f"eval/{name}"] for m in lines if f"eval/{name}" in m}


@pytest.fixture(scope="module")
def chosen(inputs, tmp_path_factory):
    """A finished run without patience: (recipe, folder, what was printed)."""
    folder = tmp_path_factory.mktemp("chosen") / "run"
    recipe = parse(values(inputs, folder))
    return recipe, folder, h.run(recipe, MESH)


@pytest.fixture(scope="module")
def stopped(inputs, tmp_path_factory):
    """A finished run that stopped early."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    recipe = parse(values(inputs, folder, best={"patience": 2}))
    return recipe, folder, h.run(recipe, MESH)


def test_the_update_with_the_lowest_held_out_metric_is_exported(chosen):
    recipe, folder, _ = chosen
    by_update = held_out(folder)
    best = min(by_update, key=by_update.get)
    assert len(by_update) == 12
    assert 1 < best < 12, by_update  # else this run cannot show it
    stage = h.prepared(recipe, "dpo", MESH)
    checkpoints = Checkpoints(folder / "dpo" / "checkpoints", 1)
    state = checkpoints.restore_step(best, stage.state_spec)
    checkpoints.close()
    chex.assert_trees_all_equal(load_params(folder / "dpo" / "model", stage.model), state.params)
    assert exported_update(folder / "dpo").update == best


def test_the_highest_metric_is_the_best_where_asked_for(inputs, tmp_path):
    best = {"metric": "logps/rejected", "want": "highest"}
    h.run(parse(values(inputs, tmp_path, best=best, steps=4)), MESH)
    by_update = held_out(tmp_path, "logps/rejected")
    assert exported_update(tmp_path / "dpo").update == max(by_update, key=by_update.get)


def test_the_best_checkpoint_is_kept_in_addition_to_the_newest(chosen):
    _, folder, _ = chosen
    assert h.sealed(folder / "dpo") == [exported_update(folder / "dpo").update, 12]


def test_a_stage_stops_after_its_patience(stopped):
    _, folder, printed = stopped
    by_update = held_out(folder)
    best = min(by_update, key=by_update.get)
    assert max(by_update) == best + 2 < 12
    assert f"dpo: stopped early after {best + 2} of 12 updates; update {best} of" in printed
    assert exported_update(folder / "dpo").made == best + 2


def test_the_updates_before_an_early_stop_are_those_of_a_whole_run(chosen, stopped):
    ours, theirs = (h.repeated(h.metrics(run[1] / "dpo")) for run in (stopped, chosen))
    assert ours == theirs[: len(ours)]  # the schedule of the learning rate too


def test_a_stage_that_stopped_early_is_finished(stopped):
    recipe, folder, _ = stopped
    before = (folder / "dpo/metrics.jsonl").read_bytes()
    assert "dpo: finished before" in h.run(recipe, MESH)
    assert (folder / "dpo/metrics.jsonl").read_bytes() == before


def test_the_final_metrics_are_of_the_exported_weights(chosen):
    recipe, folder, _ = chosen
    found = evaluate_stage(recipe, "dpo", MESH, h.QUIET)
    record = json.loads((folder / "dpo/held_out.json").read_text())
    noise = 1e-5 * found["loss"]
    assert record["exported"] == pytest.approx(found, rel=1e-5, abs=noise)
    assert record["step"] == exported_update(folder / "dpo").update
    assert f"| loss | {record['exported']['loss']:.6g} |" in card(folder)


def card(folder):
    return (folder / "dpo/model/README.md").read_text()


def test_the_model_card_names_the_exported_update(chosen, stopped):
    update = exported_update(chosen[1] / "dpo").update
    said = f"Update {update} of 12 is exported, with the lowest held-out {METRIC}, "
    assert said in card(chosen[1])
    assert "Stopped early after " in card(stopped[1])


def test_the_report_names_the_exported_update(stopped):
    folder = stopped[1]
    console = Console(file=io.StringIO(), width=200)
    console.print(terminal(folder))
    for text in (console.file.getvalue(), write_report(folder).read_text()):
        assert f"stopped early after {exported_update(folder / 'dpo').made} of 12 updates" in text
    assert "First evaluation of the training, and the exported weights." in text


class Killed(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("at", [2, 4])
def test_a_killed_run_chooses_the_same_update(inputs, stopped, tmp_path, monkeypatch, at):
    recipe = parse(values(inputs, tmp_path / "run", best={"patience": 2}))
    written = Tracker.log

    def log(self, step, metrics, *, evaluation=False):
        written(self, step, metrics, evaluation=evaluation)
        if step == at and evaluation:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "log", log)
        with pytest.raises(Killed):
            h.run(recipe, MESH)
    assert max(h.sealed(tmp_path / "run/dpo")) < at
    h.run(recipe, MESH)
    ours, theirs = tmp_path / "run/dpo", stopped[1] / "dpo"
    chex.assert_trees_all_equal(h.tensors(ours / "model"), h.tensors(theirs / "model"))
    assert exported_update(ours) == exported_update(theirs)
    assert h.repeated(h.metrics(ours)) == h.repeated(h.metrics(theirs))


def test_a_run_that_ended_before_its_export_exports_the_same(stopped, tmp_path):
    recipe = h.replaced(stopped[0], tmp_path / "run")
    h.copy_folder(stopped[1], tmp_path / "run")
    for name in ("model/README.md", "model/model.safetensors"):
        (tmp_path / "run/dpo" / name).unlink()
    (tmp_path / "run/dpo/model").rename(tmp_path / "run/dpo/.model.partial")
    h.run(recipe, MESH)
    ours, theirs = tmp_path / "run/dpo", stopped[1] / "dpo"
    chex.assert_trees_all_equal(h.tensors(ours / "model"), h.tensors(theirs / "model"))
    assert h.repeated(h.metrics(ours)) == h.repeated(h.metrics(theirs))


def test_a_best_update_without_its_checkpoint_is_refused(stopped, tmp_path):
    recipe = h.replaced(stopped[0], tmp_path / "run")
    stage = h.copy_folder(stopped[1], tmp_path / "run") / "dpo"
    (stage / "model").rename(tmp_path / "gone")
    update = exported_update(stage).update
    (stage / f"checkpoints/step-{update:08d}.json").unlink()
    with pytest.raises(UserError, match=rf"the best update so far, {update}, has no checkpoint"):
        h.run(recipe, MESH)


def test_a_record_without_an_evaluation_is_refused(stopped, tmp_path):
    recipe = h.replaced(stopped[0], tmp_path / "run")
    stage = h.copy_folder(stopped[1], tmp_path / "run") / "dpo"
    (stage / "model").rename(tmp_path / "gone")
    lines = (stage / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if '"step": 2, "eval' not in line]
    (stage / "metrics.jsonl").write_text("".join(kept))
    with pytest.raises(RunError, match="has no evaluation of update 2, which keep_best compares"):
        h.run(recipe, MESH)


@pytest.fixture
def best(inputs, tmp_path):
    """`best(patience)`: the choice of a stage that has not begun."""
    stage = h.prepared(parse(values(inputs, tmp_path, best={"patience": 2})), "dpo", MESH)
    return Best(stage, 0)


def test_a_value_that_is_not_finite_is_never_the_best(best):
    for step, value in enumerate((float("nan"), 3.0, float("-inf")), 1):
        best.add(step, {METRIC: value})
    assert best.update == 2


def test_an_equal_value_is_no_better(best):
    best.add(1, {METRIC: 3.0})
    best.add(2, {METRIC: 3.0})
    assert (best.update, best.over) == (1, False)
    best.add(3, {METRIC: 3.0})
    assert best.over


def test_a_stage_without_a_finite_value_has_no_best_update(best):
    best.add(1, {METRIC: float("nan")})
    with pytest.raises(RunError, match="no evaluation has a finite 'loss', so no update is"):
        best.end()


def test_a_metric_that_the_first_evaluation_lacks_is_refused(best):
    with pytest.raises(UserError, match=r"dpo\.keep_best\.metric: no held-out metric 'loss'"):
        best.add(1, {"rewards/chosen": 1.0})


@pytest.mark.parametrize(
    ("objective", "metric", "said"),
    [
        ("dpo", "rewards/acuracies", "did you mean 'rewards/accuracies'"),
        ("sft", "rewards/accuracies", "known: logps/response, loss"),
        ("dpo", "eval/loss", "known: logps/chosen, logps/rejected, loss, rewards/"),
    ],
)
def test_an_unknown_metric_is_refused_before_training(inputs, tmp_path, objective, metric, said):
    changes = {"objective": {"name": objective}, "keep_best": {"metric": metric}}
    recipe = parse(values(inputs, tmp_path / "run", **changes))
    with pytest.raises(UserError, match=rf"stages\.dpo\.keep_best\.metric: no held-out .*{said}"):
        check_stages(recipe, MESH, h.QUIET, {"dpo": Phases(tmp_path, "dpo", h.QUIET)})


KINDS = {
    "adapters": {"lora": {"rank": 4, "alpha": 8.0}},
    "a moving reference": {"reference": {"mode": "live", "every": 2}},
    "a running state": {
        "objective": {"name": "bco"},
        "keep_best": {"metric": "loss", "want": "highest", "patience": 2},
    },
    "a stream": {"reference": {"mode": "live"}, "data__streaming": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_exported_update_of_any_stage_has_the_best_metric(inputs, tmp_path, kind):
    recipe = parse(values(inputs, tmp_path, best={"patience": 2}, **KINDS[kind]))
    assert_exported(recipe, tmp_path)


@pytest.mark.slow
def test_a_stage_with_terms_keeps_the_best_by_a_metric_of_a_term(inputs, tmp_path):
    given = values(inputs, tmp_path, best={"metric": f"pairs/{METRIC}"})
    stage = given["stages"]["dpo"]
    own = {name: stage.pop(name) for name in ("objective", "data", "batch_size")}
    stage["terms"] = {"pairs": own, "sft": own | {"objective": {"name": "sft"}}}
    assert_exported(parse(given), tmp_path)


def assert_exported(recipe, folder):
    """The exported weights have the best value of all evaluations, and not of the last one."""
    h.run(recipe, MESH)
    update, value, metric, want, *_ = exported_update(folder / "dpo")
    by_update = held_out(folder, metric)
    assert value == by_update[update] == {"lowest": min, "highest": max}[want](by_update.values())
    assert update < max(by_update)
    found = evaluate_stage(recipe, "dpo", MESH, h.QUIET)[metric]
    assert found == pytest.approx(value, rel=1e-4, abs=1e-5)


def test_the_disk_has_room_for_the_best_checkpoint_too(inputs, tmp_path):
    recipe = parse(values(inputs, tmp_path / "run"))
    stage = h.prepared(recipe, "dpo", MESH)
    last = dataclasses.replace(recipe.stages["dpo"], keep_best=None)
    without = stage.with_recipe(dataclasses.replace(recipe, stages={"dpo": last}))
    assert [(need(s).most, need(s).left) for s in (without, stage)] == [(2, 1), (3, 2)]
