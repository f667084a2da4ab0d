"""Rounds of HyPO: answers of the model, then a stage of DPO on pairs and of a KL on the answers."""

import io
import json

import pytest
from lib import runs as h
from rich.console import Console

from jaxalign.recipe.read import parse
from jaxalign.report import write_report
from jaxalign.run.dry_run import dry_run

MESH = h.one_device()
PROMPTS, N = 8, 2
WEIGHT = 0.5


def values(inputs, folder):
    """The plain values of a recipe of two rounds; `folder` gets the prompts and the run."""
    prompts = [{"prompt": h.pair(i)["prompt"], "baseline": 0.0} for i in range(PROMPTS)]
    h.write_rows(folder / "prompts.jsonl", prompts)
    recipe = h.values(inputs, folder / "run", "dpo")
    stage = recipe["stages"].pop("dpo")
    data, objective = stage.pop("data"), stage.pop("objective")
    del stage["batch_size"]
    answers = {"prompts": f"{folder}/prompts.jsonl", "n": N, "max_new": 4}
    terms = {
        "dpo": {"objective": objective, "data": data, "batch_size": 8},
        "kl": {
            "objective": {"name": "hypo_kl", "lam": 1.0},
            "data": data | {"path": "{samples}"},
            "reference": {"path": f"{inputs}/model"},
            "weight": WEIGHT,
            "batch_size": 8,
        },
    }
    recipe["stages"]["round"] = {
        "repeat": 2,
        "stages": {
            "answers": {"sample": answers},
            "scores": {"score": {"data": "{answers}", "by": "length"}},
            "samples": {"pair": {"data": "{scores}", "how": "each", "unfinished": "keep"}},
            "hypo": stage | {"terms": terms, "steps": 2, "save_every": 0},
        },
    }
    return recipe


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    """A finished run: its recipe and its folder."""
    folder = tmp_path_factory.mktemp("rounds")
    recipe = parse(values(inputs, folder))
    h.run(recipe, MESH)
    return recipe, folder / "run"


def losses(run, number):
    return [line for line in h.metrics(run / f"round-{number}" / "hypo") if "loss" in line]


@pytest.mark.parametrize("number", [1, 2])
def test_each_round_trains_the_weighted_sum_on_pairs_and_on_its_own_answers(finished, number):
    run = finished[1]
    lines = losses(run, number)
    assert len(lines) == 2
    for line in lines:
        assert line["loss"] == pytest.approx(line["dpo/loss"] + WEIGHT * line["kl/loss"], rel=1e-5)
    counts = json.loads((run / f"round-{number}" / "hypo" / "data.json").read_text())
    samples = (run / f"round-{number}" / "samples" / "data.jsonl").read_text().splitlines()
    assert counts["kl/train"]["kept"] == len(samples) == PROMPTS * N
    assert counts["dpo/train"]["kept"] > len(samples)


def test_the_kl_to_the_first_model_is_0_at_first_and_not_after_a_round(finished):
    first, second = (losses(finished[1], number)[0] for number in (1, 2))
    assert first["kl/kl"] == pytest.approx(0, abs=1e-5)
    assert abs(second["kl/kl"]) > 1e-3


def test_the_second_round_starts_from_the_model_of_the_first(finished):
    first, second = (losses(finished[1], number)[0] for number in (1, 2))
    # The reference of DPO is the start of each stage, so its margin is 0 at the first update.
    for line in (first, second):
        assert line["dpo/rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert first["dpo/logps/chosen"] != second["dpo/logps/chosen"]


def test_a_finished_run_of_rounds_does_nothing_and_has_a_report(finished):
    recipe, run = finished
    assert h.run(recipe, MESH).count("finished before") == 8
    assert write_report(run).read_text().count("kl: training") == 2
    for i in (1, 2):
        assert list((run / "report").glob(f"stage_{i}_round_{i}_hypo_kl_*.png"))


def test_a_dry_run_waits_for_the_data_of_any_term(inputs, tmp_path):
    out = io.StringIO()
    recipe = parse(values(inputs, tmp_path))
    dry_run(recipe, recipe, MESH, Console(file=out, width=200), accept_changes=False)
    for i in (1, 2):
        assert f"round-{i}/hypo: reads data of a stage before it; planned once" in out.getvalue()
