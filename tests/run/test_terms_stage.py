"""A stage that trains a weighted sum of objectives, from its recipe to its model."""

import dataclasses
import json

import chex
import jax
import numpy as np
import pytest
from lib import runs as h
from lib.terms import SAMPLES, WEIGHT, values, write_samples

from jaxalign.core.sharding import make_mesh
from jaxalign.errors import UserError
from jaxalign.report import write_report
from jaxalign.run import plan
from jaxalign.run.export import newest_state
from jaxalign.run.room import need
from jaxalign.run.tracking import Tracker
from jaxalign.run.weights import fixed_references
from jaxalign.settings import Mesh

pytestmark = pytest.mark.slow
MESH = h.one_device()


class Crash(Exception):  # noqa: N818
    pass


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """A file of sampled answers with their baselines."""
    return write_samples(tmp_path_factory.mktemp("samples"))


@pytest.fixture(scope="module")
def finished(inputs, samples, tmp_path_factory):
    """A finished run: its recipe and its folder."""
    folder = tmp_path_factory.mktemp("hypo") / "run"
    recipe = h.parse(values(inputs, folder, samples))
    h.run(recipe, MESH)
    return recipe, folder


def training(folder):
    return [line for line in h.metrics(folder / "hypo") if "loss" in line]


def held_out(folder):
    (line,) = [line for line in h.metrics(folder / "hypo") if "eval/loss" in line]
    return line


def test_the_loss_is_the_weighted_sum_of_the_losses_of_the_terms(finished):
    lines = training(finished[1])
    assert len(lines) == h.STEPS["dpo"]
    for line in lines:
        assert line["loss"] == pytest.approx(line["dpo/loss"] + WEIGHT * line["kl/loss"], rel=1e-5)
        assert {"grad_norm", "learning_rate", "dpo/rewards/margins", "kl/kl"} <= set(line)


def test_each_term_is_evaluated_on_its_own_held_out_data(finished):
    line = held_out(finished[1])
    total = line["eval/dpo/loss"] + WEIGHT * line["eval/kl/loss"]
    assert line["eval/loss"] == pytest.approx(total, rel=1e-6)
    errors = json.loads((finished[1] / "hypo" / "held_out.json").read_text())
    assert errors["examples"] == {"dpo": h.HELD_OUT, "kl": SAMPLES}
    assert {"dpo/rewards/margins", "kl/kl"} <= set(errors["standard_errors"])


def test_the_updates_are_those_of_the_first_single_stage_where_the_other_weighs_nothing(
    inputs, samples, tmp_path
):
    alone = h.recipe(inputs, tmp_path / "alone", "dpo", stages__dpo__steps=3)
    given = values(inputs, tmp_path / "terms", samples, kl={"weight": 0.0})
    given["stages"]["hypo"]["steps"] = 3
    h.run(alone, MESH)
    h.run(h.parse(given), MESH)
    want = [line["loss"] for line in h.metrics(tmp_path / "alone" / "dpo") if "loss" in line]
    got = [line["dpo/loss"] for line in training(tmp_path / "terms")]
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_epochs_are_those_of_the_first_term_and_the_others_go_around_their_data(
    inputs, samples, tmp_path
):
    given = values(inputs, tmp_path / "run", samples)
    del given["stages"]["hypo"]["steps"]
    given["stages"]["hypo"]["epochs"] = 2
    stage = h.prepared(h.parse(given), "hypo", MESH)
    assert stage.updates == 2 * h.TRAIN // 8
    (other,) = stage.others
    batches = list(other.batches(other.training_loader(), 0, stage.updates))
    seen = np.concatenate([batch.example.reshape(-1) for batch in batches])
    assert sorted(seen[:SAMPLES]) == list(range(SAMPLES))
    assert len(seen) == 16 * stage.updates > SAMPLES


def crash_at(monkeypatch, step):
    written = Tracker.log

    def log(self, at, metrics, *, evaluation=False):
        written(self, at, metrics, evaluation=evaluation)
        if at == step and not evaluation:
            raise Crash

    monkeypatch.setattr(Tracker, "log", log)


def coupled(inputs, run, samples):
    """A first objective without a state, another with one, and a reference that moves."""
    moving = {"objective": {"name": "bco"}, "reference": {"mode": "live", "every": 2}}
    given = values(inputs, run, samples, kl=moving)
    given["stages"]["hypo"]["terms"]["kl"]["data"] |= {"path": f"{inputs}/pairs.jsonl"}
    given["stages"]["hypo"]["terms"]["kl"]["data"] |= {"eval_path": None}
    return h.parse(given)


def test_a_run_that_crashed_ends_with_the_same_bits(inputs, samples, tmp_path, monkeypatch):
    whole, crashed = (coupled(inputs, tmp_path / name, samples) for name in ("whole", "crashed"))
    h.run(whole, MESH)
    with monkeypatch.context() as patched:
        crash_at(patched, 5)
        with pytest.raises(Crash):
            h.run(crashed, MESH)
    assert h.sealed(tmp_path / "crashed" / "hypo")[-1] == 4
    assert "resumes after update 4 of 6" in h.run(crashed, MESH)
    for get in (h.tensors, h.repeated):
        found = [
            get(run / "hypo" / "model") if get is h.tensors else get(h.metrics(run / "hypo"))
            for run in (tmp_path / "whole", tmp_path / "crashed")
        ]
        chex.assert_trees_all_equal(*found)
    states = [newest_state(h.prepared(recipe, "hypo", MESH))[1] for recipe in (whole, crashed)]
    chex.assert_trees_all_equal(*states)
    objective_state, moved = states[0].terms[1]
    assert objective_state is not None
    start = fixed_references(h.prepared(with_fixed_reference(whole), "hypo", MESH))[1]
    assert jax.tree.leaves(moved)[0].shape == jax.tree.leaves(start)[0].shape
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (moved, start)), strict=True))


def with_fixed_reference(recipe):
    """The recipe with a live reference that stays where it is."""
    stage = recipe.stages["hypo"]
    fixed = dataclasses.replace(stage.terms["kl"].reference, every=0)
    terms = stage.terms | {"kl": dataclasses.replace(stage.terms["kl"], reference=fixed)}
    return dataclasses.replace(recipe, stages={"hypo": dataclasses.replace(stage, terms=terms)})


def test_the_cached_reference_of_a_term_has_a_folder_of_its_name(finished):
    folder = finished[1] / "hypo" / "reference"
    assert sorted(p.name for p in folder.iterdir()) == ["dpo"]
    assert sorted(p.name for p in (folder / "dpo").iterdir()) == ["held_out", "train"]


def test_terms_with_the_same_live_reference_share_it(inputs, samples, tmp_path):
    given = values(inputs, tmp_path / "run", samples, dpo={"reference": {"mode": "live"}})
    stage = h.prepared(h.parse(given), "hypo", MESH)
    with jax.set_mesh(MESH):
        first, second = fixed_references(stage)
    assert first is second
    sizes = [x.size * x.dtype.itemsize for x in jax.tree.leaves(stage.model.abstract)]
    copy = h.copy_folder(inputs / "model", tmp_path / "copy")
    given["stages"]["hypo"]["terms"]["kl"]["reference"]["path"] = str(copy)
    apart = h.prepared(h.parse(given), "hypo", MESH)
    assert plan.update_bytes(apart) - plan.update_bytes(stage) == sum(sizes)


def test_adapters_are_trained_by_all_terms_and_exported(finished, inputs, samples, tmp_path):
    given = values(inputs, tmp_path / "run", samples)
    given["stages"]["hypo"] |= {"lora": {"rank": 2}, "steps": 2}
    h.run(h.parse(given), MESH)
    first, second = training(tmp_path / "run")
    # New adapters change nothing, so the first losses are the losses of the start.
    assert first["loss"] == pytest.approx(training(finished[1])[0]["loss"], rel=1e-5)
    assert second["loss"] < first["loss"]
    assert {p.name for p in (tmp_path / "run" / "hypo").iterdir()} >= {"adapter", "model"}


def test_four_devices_and_microbatches_give_the_losses_of_one(finished, inputs, samples, tmp_path):
    given = values(inputs, tmp_path / "run", samples)
    given["stages"]["hypo"] |= {"microbatches": 2}
    given["stages"]["hypo"]["steps"] = 3
    recipe = h.parse(given)
    h.run(recipe, make_mesh(Mesh(data=2, tensor=2), jax.devices()[:4]))
    got = [line["loss"] for line in training(tmp_path / "run")]
    np.testing.assert_allclose(got, [x["loss"] for x in training(finished[1])[:3]], rtol=1e-4)


# The other commands


def write(finished, tmp_path, **changes):
    values_of = json.loads(json.dumps(dataclasses.asdict(finished[0]))) | changes
    return h.write_recipe(tmp_path / "recipe.yaml", values_of)


def test_evaluate_gives_the_held_out_metrics_of_the_training(finished, tmp_path, jaxalign_command):
    code, out, err = jaxalign_command("evaluate", write(finished, tmp_path))
    assert code == 0, err
    found = dict(line.split() for line in out.splitlines() if line.startswith(("loss ", "kl/")))
    line = held_out(finished[1])
    assert float(found["loss"]) == pytest.approx(line["eval/loss"], rel=1e-4)
    assert float(found["kl/kl"]) == pytest.approx(line["eval/kl/kl"], rel=1e-4)


def test_evaluate_against_another_reference_gives_it_to_every_term(
    finished, tmp_path, jaxalign_command
):
    own = finished[1] / "hypo" / "model"
    recipe = write(finished, tmp_path)
    code, out, err = jaxalign_command("evaluate", recipe, "--against", own)
    assert code == 0, err
    found = dict(line.split() for line in out.splitlines() if line.startswith(("dpo/", "kl/")))
    assert float(found["kl/kl"]) == pytest.approx(0, abs=1e-4)
    assert float(found["dpo/rewards/margins"]) == pytest.approx(0, abs=1e-4)


def test_diagnostics_of_the_command_line_are_refused(finished, tmp_path, refused):
    said = refused("evaluate", write(finished, tmp_path), "--diagnostics", "ranking")
    assert "diagnostics: each term of stage hypo has its own; give them in the recipe" in said


def test_a_stage_without_held_out_data_is_not_evaluated(inputs, samples, tmp_path, refused):
    given = values(inputs, tmp_path / "run", samples)
    for term in given["stages"]["hypo"]["terms"].values():
        del term["data"]["eval_path"]
    said = refused("evaluate", h.write_recipe(tmp_path / "recipe.yaml", given))
    assert "stages.hypo.terms.dpo.data.eval_path: give data to evaluate on" in said


def test_the_diagnostics_of_a_term_are_measured_on_its_held_out_data(inputs, samples, tmp_path):
    given = values(inputs, tmp_path / "run", samples, dpo={"diagnostics": ["ranking"]})
    given["stages"]["hypo"]["steps"] = 1
    del given["stages"]["hypo"]["terms"]["kl"]["data"]["eval_path"]
    h.run(h.parse(given), MESH)
    last = h.metrics(tmp_path / "run" / "hypo")[-1]
    assert "eval/dpo/ranking/accuracy" in last
    assert "eval/loss" not in last  # a term has no held-out data


def test_reference_computes_the_statistics_of_the_terms(
    inputs, samples, tmp_path, jaxalign_command
):
    recipe = h.write_recipe(tmp_path / "r.yaml", values(inputs, tmp_path / "run", samples))
    code, _, err = jaxalign_command("reference", recipe)
    assert code == 0, err
    assert list((tmp_path / "run" / "hypo" / "reference" / "dpo" / "train").glob("part-*.npz"))


def test_terms_without_a_cached_reference_have_none_to_compute(inputs, samples, tmp_path, refused):
    given = values(inputs, tmp_path / "run", samples, dpo={"objective": {"name": "simpo"}})
    said = refused("reference", h.write_recipe(tmp_path / "recipe.yaml", given))
    assert "stage hypo: 'simpo', 'hypo_kl' reads no cached reference" in said


def test_export_writes_the_newest_checkpoint(finished, tmp_path, jaxalign_command):
    out = tmp_path / "out"
    code, said, err = jaxalign_command("export", write(finished, tmp_path), "--out", out)
    assert code == 0, err
    assert f"the model after update {h.STEPS['dpo']} is in" in said
    chex.assert_trees_all_equal(h.tensors(out), h.tensors(finished[1] / "hypo" / "model"))


def test_the_model_card_names_all_objectives(finished):
    card = (finished[1] / "hypo" / "model" / "README.md").read_text()
    made = "with 1 x `dpo` (beta = 0.1, label_smoothing = 0.0) + 0.25 x `hypo_kl` (lam = 1.0)."
    assert made in card
    assert "tags: [jaxalign, dpo, hypo_kl]" in card
    assert "arXiv:2305.18290, Eq. 7; Song et al. 2024" in card


def test_inspect_reads_the_data_of_a_term(finished, tmp_path, jaxalign_command):
    recipe = write(finished, tmp_path)
    code, out, err = jaxalign_command("inspect", recipe, "--stage", "hypo.kl", "--json")
    assert code == 0, err
    assert json.loads(out)["sources"][0]["path"].endswith("samples.jsonl")


@pytest.mark.parametrize("stage", ["hypo", "hypo.k"])
def test_inspect_refuses_a_stage_without_the_name_of_a_term(finished, tmp_path, refused, stage):
    said = refused("inspect", write(finished, tmp_path), "--stage", stage)
    assert f"inspect: got stage '{stage}'; give hypo.dpo, hypo.kl" in said


def test_inspect_refuses_a_term_of_a_stage_with_one_objective(inputs, tmp_path, refused):
    recipe = h.write_recipe(tmp_path / "r.yaml", h.values(inputs, tmp_path / "run", "dpo"))
    assert "got stage 'dpo.a'; give dpo" in refused("inspect", recipe, "--stage", "dpo.a")


def test_the_plan_names_every_term(inputs, samples, tmp_path, jaxalign_command):
    recipe = h.write_recipe(tmp_path / "r.yaml", values(inputs, tmp_path / "run", samples))
    code, out, err = jaxalign_command("train", recipe, "--dry-run")
    assert code == 0, err
    lines = {line[2:19].strip(): line[19:] for line in out.splitlines() if line.startswith("  ")}
    assert "hypo: 1 dpo (dpo), 0.25 hypo_kl (kl)" in out
    assert lines["data of kl"].endswith("samples.jsonl: 20 examples")
    assert lines["updates"] == "6, of 8 + 16 examples in 1 microbatches"
    assert lines["reference of kl"] == "live, the start"
    assert not (tmp_path / "run").exists()


def test_automatic_microbatches_divide_the_batches_of_all_terms(
    inputs, samples, tmp_path, monkeypatch
):
    given = values(inputs, tmp_path / "run", samples, kl={"batch_size": 12})
    given["stages"]["hypo"]["microbatches"] = "auto"
    tried = []
    monkeypatch.setattr(plan, "update_bytes", lambda s: tried.append(s.settings.microbatches))
    with pytest.raises(UserError, match="auto finds none that fits"):
        plan.settled(h.prepared(h.parse(given), "hypo", MESH), h.QUIET)
    assert tried == [1, 2, 4]


def test_the_room_counts_the_reference_statistics_of_all_terms(inputs, samples, tmp_path):
    given = values(inputs, tmp_path / "run", samples, kl={"reference": {"mode": "cached"}})
    both = h.prepared(h.parse(given), "hypo", MESH)
    given = values(inputs, tmp_path / "run", samples)
    one = h.prepared(h.parse(given), "hypo", MESH)
    more = 4 * sum(int(x.offsets[-1]) for x in both.others[0].sets().values())
    assert need(both).reference == need(one).reference + more


def test_the_report_shows_the_curves_and_the_data_of_the_terms(finished):
    page = write_report(finished[1]).read_text()
    files = {path.name for path in (finished[1] / "report").glob("*.png")}
    assert {"stage_1_hypo_dpo_margin.png", "stage_1_hypo_kl_loss.png"} <= files
    for text in ("kl: training", "dpo: held out", "kl: objective: lam", "dpo: data"):
        assert text in page


def test_each_term_of_streamed_data_remembers_its_own_parts(inputs, samples, tmp_path):
    given = values(inputs, tmp_path / "run", samples)
    given["stages"]["hypo"]["terms"]["kl"]["data"]["streaming"] = True
    given["stages"]["hypo"]["steps"] = 2
    h.run(h.parse(given), MESH)
    assert (tmp_path / "run" / "hypo" / "stream-kl.json").is_file()
    assert "kl: training" in write_report(tmp_path / "run").read_text()
