"""Stages that sample, score and pair, in rounds, through a whole run."""

import dataclasses
import io
import itertools
import json
import shutil
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from lib import rounds
from lib import runs as h
from rich.console import Console

import jaxalign
from jaxalign.collect.verbs import Place, sample_file
from jaxalign.core.sharding import make_mesh
from jaxalign.errors import RunError, UserError
from jaxalign.hf import load, peft
from jaxalign.hf.kept import Kept
from jaxalign.hf.load import load_params
from jaxalign.recipe.read import parse
from jaxalign.run import data_stage
from jaxalign.run.data_stage import make_data, seed_of
from jaxalign.run.dry_run import dry_run
from jaxalign.run.phases import Phases
from jaxalign.run.preflight import checked_stages, pending
from jaxalign.sealed import read_own
from jaxalign.settings import Mesh

MESH = h.one_device()
MADE = ("answers", "scores", "pairs")


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    """The values of a recipe of two rounds, and the folder of its finished run."""
    folder = tmp_path_factory.mktemp("rounds")
    values = rounds.values(inputs, folder)
    jaxalign.train(values)
    return values, folder / "run"


def rows(run, name):
    return [json.loads(line) for line in (run / name / "data.jsonl").read_text().splitlines()]


def summary(run, name):
    return json.loads((run / name / "summary.json").read_text())


# A finished run


@pytest.mark.parametrize("number", [1, 2])
def test_a_stage_that_makes_data_leaves_its_data_and_a_summary(finished, number):
    for name in MADE:
        found = {path.name for path in (finished[1] / f"round-{number}" / name).iterdir()}
        assert found == {"data.jsonl", "summary.json", "timings.json"}


@pytest.mark.parametrize("number", [1, 2])
def test_the_files_of_a_round_follow_from_one_another(finished, number):
    run, at = finished[1], f"round-{number}"
    answers, scored = rows(run, f"{at}/answers"), rows(run, f"{at}/scores")
    kept = [{k: v for k, v in row.items() if not k.startswith("scores")} for row in scored]
    assert kept == answers
    scope = {}
    exec(rounds.SCORER, scope)
    for row in scored:
        assert row["scores"] == [scope["score"](row["prompt"], r, row) for r in row["responses"]]
    texts = {row["prompt"]: row["responses"] for row in scored}
    for pair in rows(run, f"{at}/pairs"):
        assert {pair["chosen"], pair["rejected"]} <= set(texts[pair["prompt"]])
        assert pair["score_chosen"] > pair["score_rejected"]
    counts = json.loads((run / at / "dpo" / "data.json").read_text())
    assert counts["train"]["kept"] == len(rows(run, f"{at}/pairs")) >= h.BATCH


def test_the_model_of_a_run_is_that_of_the_last_stage_that_trains(tmp_path):
    (tmp_path / "recipe.yaml").write_text("stages: {dpo: {}, more: {sample: {}}}")
    (tmp_path / "dpo" / "model").mkdir(parents=True)
    assert jaxalign.Run(tmp_path).model() == tmp_path / "dpo" / "model"


def test_the_summaries_count_answers_scores_and_pairs(finished):
    run, count = finished[1], rounds.PROMPTS * rounds.N
    answers, scores = (summary(run, f"round-1/{name}") for name in ("answers", "scores"))
    assert (answers["prompts"], answers["answers"]) == (rounds.PROMPTS, count)
    assert scores["scores"] == count
    assert scores["min"] < scores["mean"] < scores["max"]
    pairs = summary(run, "round-1/pairs")
    assert pairs["prompts"] == rounds.PROMPTS
    assert pairs["rows"] == len(rows(run, "round-1/pairs"))


def test_each_round_has_prompts_and_seeds_of_its_own(finished):
    first, second = (rows(finished[1], f"round-{i}/answers") for i in (1, 2))
    assert [row["prompt"] for row in first] != [row["prompt"] for row in second]
    seeds = [{seed for row in rows for seed in row["seeds"]} for rows in (first, second)]
    assert not seeds[0] & seeds[1]


@pytest.mark.parametrize(("number", "model"), [(1, "model"), (2, "run/round-1/dpo/model")])
def test_a_round_samples_the_model_of_the_round_before(finished, inputs, tmp_path, number, model):
    run, name = finished[1], f"round-{number}/answers"
    recipe = parse(finished[0])
    folder = inputs / model if number == 1 else run.parent / model
    place = Place(mesh=MESH, dtype="float32", say=lambda text: None)
    out = tmp_path / "data.jsonl"
    sample_file(recipe.stages[name].sample, folder, out, seed_of(recipe, name), place)
    again = [json.loads(line) for line in out.read_text().splitlines()]
    for row, other in zip(rows(run, name), again, strict=True):
        assert row["responses"] == other["responses"]
        np.testing.assert_allclose(row["logps"], other["logps"], rtol=1e-4)


def test_training_changes_the_model_in_each_round(finished, inputs):
    models = [inputs / "model", *(finished[1] / f"round-{i}/dpo/model" for i in (1, 2))]
    for before, after in itertools.pairwise(models):
        old, new = h.tensors(before), h.tensors(after)
        assert any(np.any(old[name] != new[name]) for name in old)


def test_a_round_takes_the_model_of_the_round_before_from_the_devices(
    finished, inputs, tmp_path, monkeypatch
):
    read = []

    def loaded(folder, *args, **options):
        read.append(folder)
        return load_params(folder, *args, **options)

    for module in (load, peft):
        monkeypatch.setattr(module, "load_params", loaded)
    values = rounds.values(inputs, tmp_path)
    h.run(parse(values), MESH)
    # For answers, the reference of both data sets, and the start: no model of a round is read.
    assert read == [inputs / "model"] * 4
    monkeypatch.setattr(Kept, "of", lambda *args: None)
    (tmp_path / "other").mkdir()
    values = rounds.values(inputs, tmp_path / "other")
    h.run(parse(values), MESH)
    assert read[8:] == [tmp_path / "other/run/round-1/dpo/model"] * 4
    for name in ("round-1/dpo", "round-2/dpo"):
        ours, theirs = (
            h.tensors(run / name / "model") for run in (tmp_path / "run", tmp_path / "other/run")
        )
        chex.assert_trees_all_equal(ours, theirs)
    assert rows(tmp_path / "run", "round-2/answers") == rows(
        tmp_path / "other/run", "round-2/answers"
    )


def test_the_batches_of_a_round_have_the_sizes_of_the_round_before(finished):
    first, second = (
        read_own(finished[1] / f"round-{i}" / "dpo" / "sizes.json", dict) for i in (1, 2)
    )
    assert {key for key, (by_step, *_) in first.items() if by_step} == {"train"} < first.keys()
    assert first == second


def test_a_stage_in_no_round_keeps_no_sizes(inputs, tmp_path):
    h.run(h.recipe(inputs, tmp_path / "run", "dpo"), MESH)
    assert not (tmp_path / "run" / "dpo" / "sizes.json").exists()


def test_damaged_sizes_of_the_round_before_are_refused(finished, inputs, tmp_path):
    run = shutil.copytree(finished[1], tmp_path / "run")
    shutil.rmtree(run / "round-2" / "dpo")
    sizes = run / "round-1" / "dpo" / "sizes.json"
    sizes.write_text(sizes.read_text().replace("train", "trian"))
    with pytest.raises(RunError, match=r"sizes\.json.*the next round compiles programs of its own"):
        jaxalign.train(finished[0], {"run.dir": str(run)})


def test_a_finished_run_does_nothing_when_it_is_started_again(finished):
    values, run = finished
    products = [p for p in run.rglob("*") if p.name in ("data.jsonl", "model", "summary.json")]
    before = {p: p.stat().st_mtime_ns for p in products}
    assert len(before) == 2 * (3 + 3 + 1)
    said = h.run(parse(values), MESH)
    assert f"round-1/answers: finished before, its data is {run}/round-1/answers/data.jsonl" in said
    assert f"round-2/dpo: finished before, its model is in {run}/round-2/dpo/model" in said
    assert {p: p.stat().st_mtime_ns for p in products} == before


@pytest.mark.slow
def test_one_more_round_continues_a_finished_run(finished, inputs, tmp_path):
    run = Path(shutil.copytree(finished[1], tmp_path / "run"))
    values = rounds.values(inputs, finished[1].parent, repeat=3)
    values["run"]["dir"] = str(run)
    jaxalign.train(values)
    assert (run / "round-3/dpo/model").is_dir()
    assert (run / "round-2/pairs/data.jsonl").read_bytes() == (
        finished[1] / "round-2/pairs/data.jsonl"
    ).read_bytes()


def test_the_report_has_the_table_of_the_data(finished):
    text = (finished[1] / "report" / "report.html").read_text()
    assert "Data made" in text
    for number in (1, 2):
        assert f"prompts {rounds.PROMPTS}, answers {rounds.PROMPTS * rounds.N}" in text
        for name in MADE:
            assert f"round-{number}/{name}" in text


# Other commands


def test_a_stage_of_a_round_is_evaluated_by_its_name(finished):
    found = jaxalign.evaluate(finished[0], "round-2/dpo")
    last = h.metrics(finished[1] / "round-2/dpo")[-1]
    assert found["loss"] == pytest.approx(last["eval/loss"], rel=1e-5)


def test_the_reference_of_a_stage_of_a_round_is_in_its_folder(finished):
    assert jaxalign.reference(finished[0], "round-2/dpo") == finished[1] / "round-2/dpo/reference"


def test_the_data_of_a_stage_of_a_round_are_inspected_by_its_name(finished):
    found = jaxalign.inspect(finished[0], stage="round-2/dpo").to_json()
    assert f"{finished[1]}/round-2/pairs/data.jsonl" in json.dumps(found)


@pytest.mark.parametrize("call", [jaxalign.evaluate, jaxalign.reference])
@pytest.mark.parametrize("name", [f"round-1/{name}" for name in MADE])
def test_a_stage_that_makes_data_is_refused_by_its_name(finished, call, name):
    with pytest.raises(UserError, match=f"stage {name}: it makes data and trains no model"):
        call(finished[0], name)


def test_the_data_of_a_stage_that_has_not_run_are_named(inputs, tmp_path):
    values = rounds.values(inputs, tmp_path)
    with pytest.raises(UserError, match=r"round-2/pairs/data\.jsonl: no such file"):
        jaxalign.inspect(values, stage="round-2/dpo")


def test_a_dry_run_says_which_stages_wait(inputs, tmp_path):
    recipe, out = parse(rounds.values(inputs, tmp_path)), io.StringIO()
    dry_run(recipe, recipe, MESH, Console(file=out, width=200), accept_changes=False)
    text = out.getvalue()
    for number in (1, 2):
        for name in MADE:
            assert f"round-{number}/{name}: makes data; planned once that is there" in text
        assert f"round-{number}/dpo: reads data of a stage before it; planned once" in text
    assert "nothing was written" in text
    assert not (tmp_path / "run").exists()


def test_a_dry_run_names_what_is_finished(finished):
    recipe, out = parse(finished[0]), io.StringIO()
    dry_run(recipe, recipe, MESH, Console(file=out, width=200), accept_changes=False)
    for name in ("round-1/answers", "round-2/dpo"):
        product = recipe.product(name)
        assert f"{name}: finished before, its result is {product}" in out.getvalue()


# Mistakes that cost no training


def reward_model(folder):
    return {"reward_model": {"model": str(folder)}}


MISTAKES = {
    "a missing file of prompts": ({"answers__prompts": "no.jsonl"}, r"no\.jsonl: no such file"),
    "too few prompts": ({"answers__limit": 99}, r"pairs\.jsonl: has 24 prompts, fewer than"),
    "too many new tokens": (
        {"answers__max_new": 62},
        r"pairs\.jsonl line \d+: \d tokens and max_new 62 make .*more than the model's 64",
    ),
    "a missing chat template": ({"answers__chat_template": "no.jinja"}, "no.jinja"),
    "a missing model": ({"answers__model": "./nowhere"}, "sample.model: no folder ./nowhere"),
    "an endpoint without a key": (
        {"answers__endpoint": {"endpoint": "http://x", "model": "m", "key_env": "NO_SUCH_KEY"}},
        "the environment variable NO_SUCH_KEY is empty",
    ),
    "a missing file of a scorer": (
        {"scores__by": {"function": {"file": "no.py", "name": "score"}}},
        r"no\.py",
    ),
    "a missing model of a scorer": ({"scores__by": reward_model("./nowhere")}, "./nowhere"),
    "a missing program": (
        {"scores__by": {"program": {"command": ["./no-such-program"]}}},
        "no-such-program",
    ),
}


@pytest.mark.parametrize(("changes", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_a_stage_that_makes_data_costs_no_training(inputs, tmp_path, changes, message):
    values = rounds.values(inputs, tmp_path, **changes)
    sft = h.values(inputs, tmp_path / "run", "sft")["stages"]
    values["stages"] = sft | values["stages"]
    kind = "answers" if "answers" in next(iter(changes)) else "scores"
    with pytest.raises(UserError, match=message) as error:
        h.run(parse(values), MESH)
    assert f"round-1/{kind}" in str(error.value)
    assert not (tmp_path / "run/sft").exists()


def test_a_scorer_may_name_a_model_that_is_still_to_be_trained(inputs, tmp_path):
    by = {"log_ratio": {"model": "{dpo}", "reference": f"{inputs}/model"}}
    values = rounds.values(inputs, tmp_path)
    after = {"score": {"data": "{answers}", "by": by}}
    recipe = parse(values | {"stages": values["stages"] | {"after": after}})
    data_stage.check_data_stage(recipe, "after", inputs / "model", MESH)
    assert data_stage.located(recipe, recipe.stages["after"]).by["log_ratio"]["model"] == (
        f"{tmp_path}/run/round-2/dpo/model"
    )


@pytest.mark.parametrize("mode", ["cached", "live"])
def test_a_reference_may_be_a_model_that_is_still_to_be_trained(inputs, tmp_path, mode):
    reference = {"mode": mode, "path": "{sft}"}
    values = h.values(inputs, tmp_path / "run", "sft", "dpo", stages__dpo__reference=reference)
    recipe = parse(values)
    waiting = {name: Phases(tmp_path, name, h.QUIET) for name in pending(recipe)}
    assert [s.name for s in checked_stages(recipe, MESH, h.QUIET, waiting)] == ["sft", "dpo"]


def test_the_template_of_a_stage_may_be_in_the_world(inputs, tmp_path):
    values = rounds.values(inputs, tmp_path) | {"world": {}}
    values["stages"]["round"]["stages"]["answers"]["sample"]["chat_template"] = "{world}/t.jinja"
    how, _ = data_stage._sampling(parse(values), "round-1/answers")
    assert how.chat_template == f"{tmp_path}/run/world/t.jinja"


def test_braces_of_a_pattern_are_no_name_of_a_stage(inputs, tmp_path):
    by = {"regex": {"pattern": "{answers}"}}
    values = rounds.values(inputs, tmp_path)
    after = {"score": {"data": "{answers}", "by": by}}
    recipe = parse(values | {"stages": values["stages"] | {"after": after}})
    assert data_stage.located(recipe, recipe.stages["after"]).by == by


def test_a_mistake_in_the_data_is_named_with_its_stage(inputs, tmp_path):
    recipe = parse(rounds.values(inputs, tmp_path))
    out = Path(recipe.product("round-1/scores"))
    out.parent.mkdir(parents=True)
    h.write_rows(out, [{"prompt": "x", "responses": ["a"]}])
    with pytest.raises(UserError, match=r"stage round-1/pairs: .*data\.jsonl line 1: no 'scores'"):
        make_data(recipe, "round-1/pairs", inputs, MESH, h.QUIET, accept_changes=False)


# Interrupted


class Kill(BaseException):
    pass


def test_a_finished_stage_has_its_summary_whenever_it_was_killed(inputs, tmp_path, monkeypatch):
    recipe = parse(rounds.values(inputs, tmp_path))
    out = Path(recipe.product("round-1/pairs"))
    scored = Path(recipe.product("round-1/scores"))
    scored.parent.mkdir(parents=True)
    h.write_rows(scored, [{"prompt": "x", "responses": ["a", "b"], "scores": [1.0, 0.0]}])

    def killed(*args):
        raise Kill

    def make():
        make_data(recipe, "round-1/pairs", inputs, MESH, h.QUIET, accept_changes=False)

    with monkeypatch.context() as patch:
        patch.setattr(data_stage, "write_whole", killed)
        with pytest.raises(Kill):
            make()
    assert not out.exists()
    make()
    assert len(rows(tmp_path / "run", "round-1/pairs")) == 1
    assert summary(tmp_path / "run", "round-1/pairs")["rows"] == 1
    assert sorted(path.name for path in out.parent.iterdir()) == ["data.jsonl", "summary.json"]


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [Mesh(data=8), Mesh(data=2, fsdp=2, tensor=2)])
def test_eight_devices_give_the_tokens_of_one(inputs, tmp_path, sizes):
    found = []
    for mesh in (MESH, make_mesh(sizes)):
        folder = tmp_path / str(mesh.size)
        folder.mkdir()
        values = rounds.values(inputs, folder, answers__temperature=0.0, answers__max_new=12)
        recipe = dataclasses.replace(parse(values), mesh=sizes)
        with jax.default_matmul_precision("highest"):
            make_data(
                recipe, "round-1/answers", inputs / "model", mesh, h.QUIET, accept_changes=False
            )
        found.append(rows(folder / "run", "round-1/answers"))
    for one, eight in zip(*found, strict=True):
        assert one["responses"] == eight["responses"]
        assert one["tokens"] == eight["tokens"]
        np.testing.assert_allclose(one["logps"], eight["logps"], rtol=1e-4)
