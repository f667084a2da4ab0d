"""Diagnostics in a recipe, in its metrics, and between any two checkpoints."""

import json
import math
import re

import pytest
from lib import runs as h

from jaxalign.diagnostics import DIAGNOSTICS, diversity
from jaxalign.errors import UserError
from jaxalign.recipe.read import parse, read

ALL = [n for n, d in DIAGNOSTICS.items() if not any(s.joint for s in d.needs)]


def values(inputs, folder, *stages, diagnostics=(), **changes):
    stage = (stages or ("dpo",))[-1]
    own = {
        f"stages__{stage}__data__eval_path": f"{inputs}/held_out.jsonl",
        f"stages__{stage}__diagnostics": list(diagnostics),
    }
    return h.values(inputs, folder, *(stages or ("dpo",)), **own | changes)


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    """The folder of a finished run that measured everything, and its recipe."""
    folder = tmp_path_factory.mktemp("diagnosed")
    recipe = h.write_recipe(
        folder / "recipe.yaml",
        values(inputs, folder / "run", diagnostics=ALL, stages__dpo__eval_every=3),
    )
    h.run(read(recipe, []), h.one_device())
    return folder / "run", recipe


def printed(out):
    return {k: float(v) for k, v in re.findall(r"^(\S+) +(-?[\d.e+-]+) *$", out, re.MULTILINE)}


def of_diagnostics(metrics):
    return {k: v for k, v in metrics.items() if k.split("/")[0] in DIAGNOSTICS}


def test_diagnostics_are_logged_with_the_held_out_metrics(finished):
    lines = [line for line in h.metrics(finished[0] / "dpo") if "eval/loss" in line]
    assert [line["step"] for line in lines] == [3, h.STEPS["dpo"]]
    for line in lines:
        names = {k.removeprefix("eval/").split("/")[0] for k in line}
        assert set(ALL) <= names
        assert all(math.isfinite(v) for v in line.values())
        assert 0 <= line["eval/ranking/accuracy"] <= 1
        assert 0 < line["eval/topk/chosen_mass"] <= 1


def test_shares_are_over_all_held_out_pairs(finished):
    last = h.metrics(finished[0] / "dpo")[-1]
    count = last["eval/ranking/accuracy"] * h.HELD_OUT
    assert count == pytest.approx(round(count), abs=1e-4)


def test_diagnostics_are_in_the_model_card(finished):
    card = (finished[0] / "dpo" / "model" / "README.md").read_text()
    assert "| entanglement/rho |" in card


@pytest.mark.slow
def test_evaluate_prints_the_diagnostics_of_the_stage(finished, jaxalign_command):
    folder, recipe = finished
    code, out, _ = jaxalign_command("evaluate", recipe)
    assert code == 0
    got, last = of_diagnostics(printed(out)), h.metrics(folder / "dpo")[-1]
    assert len(got) > 25
    for name, value in got.items():
        assert value == pytest.approx(last[f"eval/{name}"], rel=1e-3, abs=1e-4), name


def test_a_model_against_itself_has_not_moved(finished, jaxalign_command):
    folder, recipe = finished
    model = folder / "dpo" / "model"
    named = ("--diagnostics", "shift", "logit_shift", "ranking")
    code, out, _ = jaxalign_command("evaluate", recipe, "--against", model, *named)
    assert code == 0
    got = printed(out)
    assert got["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert got["shift/chosen"] == pytest.approx(0, abs=1e-4)
    assert got["logit_shift/chosen_token"] == pytest.approx(0, abs=1e-3)
    last = h.metrics(folder / "dpo")[-1]
    assert got["ranking/accuracy"] == pytest.approx(last["eval/ranking/accuracy"])
    assert {k.split("/")[0] for k in of_diagnostics(got)} == {"shift", "logit_shift", "ranking"}


def test_a_reference_on_the_command_line_is_the_reference_of_the_stage(
    finished, jaxalign_command, inputs
):
    folder, recipe = finished
    start = inputs / "model"  # what the stage started from, its reference
    code, out, _ = jaxalign_command(
        "evaluate", recipe, "--against", start, "--diagnostics", "three_d", "shift"
    )
    assert code == 0
    last = h.metrics(folder / "dpo")[-1]
    for name, value in of_diagnostics(printed(out)).items():
        assert value == pytest.approx(last[f"eval/{name}"], rel=1e-3, abs=1e-4), name


def test_an_objective_without_a_reference_is_compared_with_a_checkpoint(
    finished, jaxalign_command, inputs, tmp_path
):
    folder, _ = finished
    recipe = h.write_recipe(tmp_path / "recipe.yaml", values(inputs, tmp_path / "run", "simpo"))
    two = ("--checkpoint", folder / "dpo" / "model", "--against", inputs / "model")
    code, out, err = jaxalign_command("evaluate", recipe, *two, "--diagnostics", "shift")
    assert code == 0, err
    last = h.metrics(folder / "dpo")[-1]
    assert printed(out)["shift/chosen"] == pytest.approx(last["eval/shift/chosen"], rel=1e-3)


@pytest.mark.slow
def test_diagnostics_beside_adapters_are_of_the_adapters(inputs, tmp_path):
    lora = {
        "stages__dpo__lora": {"rank": 4},
        "stages__dpo__reference": {"mode": "live"},
        "stages__dpo__steps": 2,
    }
    named = ("topk", "shift", "logit_shift", "entanglement")
    h.run(parse(values(inputs, tmp_path / "run", diagnostics=named, **lora)), h.one_device())
    last = h.metrics(tmp_path / "run" / "dpo")[-1]
    assert 0 < last["eval/entanglement/chosen_norm2"] < math.inf
    assert last["eval/shift/chosen"] != 0
    assert last["eval/logit_shift/chosen"] > 0


def test_the_recipe_reads_back_equal(inputs, tmp_path):
    recipe = parse(values(inputs, tmp_path, diagnostics=("topk", "shift")))
    assert recipe.stages["dpo"].diagnostics == ("topk", "shift")
    path = h.write_recipe(tmp_path / "recipe.yaml", values(inputs, tmp_path))
    flags = ["--stages.dpo.diagnostics", "topk", "shift"]
    assert read(path, flags) == recipe


@pytest.mark.parametrize(
    "stage, diagnostics, changes, message",
    [
        ("dpo", ["rankings"], {}, r"no diagnostic 'rankings'; did you mean 'ranking'\?"),
        ("kto", ["ranking"], {}, "'ranking' reads Pairs, and 'kto' has Mismatched; leave it out"),
        ("sft", ["entanglement"], {}, "'entanglement' reads Pairs, and 'sft' has Demos"),
        ("simpo", ["topk", "shift"], {}, "'shift' compares with a reference, and 'simpo' has none"),
        ("slpo", ["difficulty"], {}, "reads the `beta` of an objective with a reference"),
        ("dpo", ["logit_shift"], {}, "reads the reference's logits, which are not cached; "),
        ("dpo", ["topk"], {"stages__dpo__data__eval_path": None}, r"give data\.eval_path"),
        ("dpo", "topk", {}, "Input should be a valid tuple"),
    ],
)
def test_a_diagnostic_that_does_not_fit_stops_the_recipe(
    inputs, tmp_path, stage, diagnostics, changes, message
):
    given = values(inputs, tmp_path, stage, **changes)
    given["stages"][stage]["diagnostics"] = diagnostics
    with pytest.raises(UserError, match=rf"recipe: stages\.{stage}\.diagnostics: .*{message}"):
        parse(given)


def test_a_wrong_diagnostic_of_evaluate_is_one_error(inputs, refused, tmp_path):
    recipe = h.write_recipe(tmp_path / "recipe.yaml", values(inputs, tmp_path / "run", "simpo"))
    error = refused("evaluate", recipe, "--diagnostics", "top")
    assert "diagnostics: no diagnostic 'top'; did you mean 'topk'?" in error
    error = refused("evaluate", recipe, "--diagnostics", "shift")
    assert "--against` gives it one" in error
    recipe = h.write_recipe(tmp_path / "dpo.yaml", values(inputs, tmp_path / "dpo"))
    error = refused("evaluate", recipe, "--diagnostics", "logit_shift")
    assert "diagnostics: 'logit_shift' reads the reference's logits" in error


def test_generate_prints_the_diversity_of_its_answers(jaxalign_command, inputs, tmp_path):
    h.write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"{i}+1="} for i in range(6)])
    how = ("--prompts", tmp_path / "prompts.jsonl", "--max-new", 6, "--dtype", "float32")
    code, out, err = jaxalign_command("generate", inputs / "model", *how, "--diversity")
    assert code == 0
    assert len([json.loads(line) for line in out.splitlines()]) == 6
    got = printed(err)
    assert set(got) >= {"distinct", "ead", "distinct/1", "ead/2"}
    assert all(0 < v <= 1.5 for v in got.values())
    assert got.keys() == diversity([[1, 2, 3, 4, 5]], 9).keys()
