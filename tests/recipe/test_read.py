from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path

import pytest
import yaml
from lib.recipes import minimal, with_stage

from jaxalign.errors import UserError
from jaxalign.objectives import OBJECTIVES
from jaxalign.recipe import read as config
from jaxalign.recipe.diff import differences
from jaxalign.recipe.read import BUILT_IN
from jaxalign.recipe.schema import objective_settings, section
from jaxalign.settings import Data, EvalSamples, KeepBest, Lora, Model, Recipe, Run, Stage, World

RECIPE = """
run: {dir: runs/x}
model: {path: some/model}
stages:
  sft:
    objective: {name: sft}
    data: {path: demos.jsonl}
    optimizer: {learning_rate: 5e-7}
  dpo-2:
    objective: {name: dpo, beta: 0.2}
    data: {path: pairs.jsonl}
"""


@pytest.fixture
def recipe_file(tmp_path):
    def write(text=RECIPE):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_a_file_gives_the_settings_it_names_and_defaults(recipe_file):
    recipe = config.read(recipe_file(), [])
    dpo = section("dpo")(name="dpo", beta=0.2)
    assert recipe.run == Run(dir="runs/x")
    assert recipe.model == Model(path="some/model")
    assert list(recipe.stages) == ["sft", "dpo-2"]
    assert dataclasses.asdict(recipe.stages["dpo-2"]) == dataclasses.asdict(
        Stage(objective=dpo, data=Data(path="pairs.jsonl"))
    )


def test_a_number_that_yaml_reads_as_text_is_a_number(recipe_file):
    assert yaml.safe_load("5e-7") == "5e-7"
    recipe = config.read(recipe_file(), [])
    assert recipe.stages["sft"].optimizer.learning_rate == 5e-7


def test_two_reads_of_one_file_are_equal(recipe_file):
    assert config.read(recipe_file(), []) == config.read(recipe_file(), [])


def test_the_dump_reads_back_equal(recipe_file):
    recipe = config.read(recipe_file(), [])
    assert config.read(recipe_file(config.dump(recipe)), []) == recipe


def test_the_resolved_values_parse_back_equal(recipe_file):
    recipe = config.read(recipe_file(), [])
    assert config.parse(config.resolved(recipe)) == recipe


def test_an_integer_default_of_a_float_becomes_a_float():
    recipe = config.parse(with_stage(epochs=2))
    assert isinstance(recipe.stages["dpo"].epochs, float)


def test_a_world_section_may_be_empty():
    assert config.parse(minimal(world={})).world == World()


def test_a_path_in_the_world_is_in_the_folder_of_the_run():
    recipe = config.parse(minimal(world={"train": 8}, model={"path": "{world}/model"}))
    assert recipe.locate(recipe.model.path) == "r/world/model"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_makes_a_stage_with_its_own_defaults(name):
    required = {k: 1.0 for k, p in OBJECTIVES[name].hyper.items() if p.default is p.empty}
    reference = {"mode": "live" if OBJECTIVES[name].reference == "live" else "cached"}
    recipe = config.parse(with_stage(objective={"name": name} | required, reference=reference))
    chosen, hyper = objective_settings(recipe.stages["dpo"])
    assert chosen is OBJECTIVES[name]
    assert hyper == {k: p.default for k, p in chosen.hyper.items()} | required


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_hyper_parameter_has_help(name):
    help_of = str(section(name).__doc__)
    assert [k for k in OBJECTIVES[name].hyper if f"\n  {k}: " not in help_of] == []


# Flags


def test_flags_override_the_file(recipe_file):
    flags = ["--stages.dpo-2.objective.beta", "0.05", "--model.dtype", "float32", "--run.dir", "r"]
    recipe = config.read(recipe_file(), flags)
    assert objective_settings(recipe.stages["dpo-2"])[1]["beta"] == 0.05
    assert (recipe.model.dtype, recipe.run.dir) == ("float32", "r")


def test_flags_leave_everything_else_as_it_was(recipe_file):
    before = config.resolved(config.read(recipe_file(), []))
    after = config.resolved(config.read(recipe_file(), ["--stages.sft.data.limit", "5"]))
    assert differences(before, after) == ["stages.sft.data.limit: None -> 5"]


def test_flags_override_the_world(recipe_file):
    recipe = config.read(recipe_file(f"{RECIPE}\nworld: {{seed: 3}}"), ["--world.train", "10"])
    assert recipe.world == World(seed=3, train=10)


def test_a_flag_out_of_range_is_named_as_it_was_typed(recipe_file):
    flags = ["--stages.dpo-2.objective.label-smoothing", "0.5"]
    message = (
        r"^--stages.dpo-2.objective.label-smoothing: Input should be less than 0.5 \(got 0.5\)$"
    )
    with pytest.raises(UserError, match=message):
        config.read(recipe_file(), flags)


def test_an_unknown_flag_exits_with_2_and_names_the_near_one(recipe_file, capsys):
    with pytest.raises(SystemExit) as stop:
        config.read(recipe_file(), ["--stages.dpo-2.objective.betta", "1"])
    assert stop.value.code == 2
    shown = capsys.readouterr()
    assert "--stages.dpo-2.objective.beta" in (shown.out + shown.err).split("Perhaps you meant")[1]


def test_the_objective_cannot_be_changed_by_a_flag(recipe_file, capsys):
    with pytest.raises(SystemExit) as stop:
        config.read(recipe_file(), ["--stages.dpo-2.objective.name", "sft"])
    assert stop.value.code == 2
    assert "invalid choice 'sft'" in capsys.readouterr().err


def test_microbatches_are_a_number_or_auto(recipe_file):
    for given, wanted in (("auto", "auto"), ("4", 4)):
        recipe = config.read(recipe_file(), ["--stages.dpo-2.microbatches", given])
        assert recipe.stages["dpo-2"].microbatches == wanted
        assert config.parse(config.resolved(recipe)) == recipe


def test_microbatches_of_another_kind_are_refused(recipe_file):
    wanted = r"microbatches: Input should be greater than 0 or 'auto' \(got 0\)"
    with pytest.raises(UserError, match=wanted):
        config.read(recipe_file(), ["--stages.dpo-2.microbatches", "0"])


@pytest.fixture
def help_text(recipe_file, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stop:
        config.read(recipe_file(), ["--help"], prog="jaxalign train recipe.yaml")
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_help_shows_the_command(help_text):
    assert "usage: jaxalign train recipe.yaml" in help_text


def test_help_shows_the_equation_of_the_objective_as_it_is_written(help_text):
    assert "    loss = -(1 - eps) log sigmoid(beta h) - eps log sigmoid(-beta h)" in help_text


def test_help_shows_a_hyper_parameter_with_its_meaning_and_the_recipe_s_value(help_text):
    words = " ".join(help_text.replace("│", " ").split())
    assert (
        "--stages.dpo-2.objective.beta FLOAT reward per nat of log-ratio; larger keeps the policy "
        "nearer the reference. (default: 0.2)" in words
    )


def test_help_shows_every_field_of_every_stage(help_text):
    dotted = differences({}, config.resolved(config.parse(yaml.safe_load(RECIPE))))
    flags = [line.split(":")[0].replace("_", "-") for line in dotted]
    # Sections that have flags where the recipe names them.
    optional = ("world", "lora", "mixture", "keep-best", "eval-samples")
    flags = [f for f in flags if f.rpartition(".")[-1] not in optional]
    assert [f for f in flags if f"--{f}" not in help_text] == []


@pytest.mark.parametrize(
    ("section", "kind", "given"),
    [
        ("lora", Lora, {}),
        ("keep_best", KeepBest, {"metric": "loss"}),
        ("eval_samples", EvalSamples, {}),
    ],
)
def test_help_shows_the_optional_section_of_a_stage_that_has_it(
    recipe_file, capsys, section, kind, given
):
    recipe = yaml.safe_load(RECIPE)
    name = next(iter(recipe["stages"]))
    recipe["stages"][name] |= {section: given, "eval_every": 1}
    recipe["stages"][name]["data"]["eval_path"] = "held_out.jsonl"
    with pytest.raises(SystemExit):
        config.read(recipe_file(yaml.safe_dump(recipe)), ["--help"])
    text = capsys.readouterr().out
    fields = [f.name.replace("_", "-") for f in dataclasses.fields(kind)]
    flag = f"--stages.{name}.{section.replace('_', '-')}"
    assert [f for f in fields if f"{flag}.{f}" not in text] == []


def test_every_setting_has_help(help_text):
    lines = [line.strip("│| ") for line in help_text.splitlines()]
    after = {a: b for a, b in itertools.pairwise(lines) if re.match(r"--[a-z]", a)}
    assert len(after) > 50
    assert [a for a, b in after.items() if b.startswith(("(default", "--"))] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: {dir: x}\n\tmodel: 1", r"recipe.yaml: not valid YAML: line 2: found character"),
        (
            "run: {dir: x}\nrun: {dir: y}",
            r"recipe.yaml: not valid YAML: line 2: the key 'run' is giv",
        ),
        (
            "run: {dir: x}\nno: 1",
            r"recipe.yaml: not valid YAML: line 2: the key 'no' is not read as",
        ),
        ("run: \x00", r"recipe.yaml: not valid YAML: unacceptable character"),
        (
            "- run",
            r"recipe.yaml: a recipe is a mapping of run, model and stages \(got \['run'\]\)$",
        ),
        ("", r"recipe.yaml: a recipe is a mapping of run, model and stages \(got None\)$"),
        (
            "run: {dri: x}",
            r"recipe.yaml: run.dri: unknown; did you mean 'dir'\? known: .*seed.* \(got 'x'\)",
        ),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(recipe_file, text, message):
    with pytest.raises(UserError, match=message):
        config.read(recipe_file(text), [])


def test_yaml_anchors_and_merges_still_work(recipe_file):
    text = RECIPE.replace("data: {path: demos.jsonl}", "data: &d {path: x, limit: 3}")
    text = text.replace("data: {path: pairs.jsonl}", "data: {<<: *d, path: y}")
    assert config.read(recipe_file(text), []).stages["dpo-2"].data == Data(path="y", limit=3)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone.yaml: No such file or directory; give the path"):
        config.read(str(tmp_path / "gone.yaml"), [])


# The recipes of the package and of the repository


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_recipe_of_the_package_is_read_by_its_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert isinstance(config.read(name, []), Recipe)


def test_a_file_goes_before_a_recipe_of_the_package(recipe_file, tmp_path, monkeypatch):
    Path(recipe_file()).rename(tmp_path / "quickstart")
    monkeypatch.chdir(tmp_path)
    assert config.read("quickstart", []).run.dir == "runs/x"


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[2].glob("configs/*.yaml")), ids=str)
def test_every_recipe_of_the_repository_reads(path):
    assert isinstance(config.read(str(path), []), Recipe)


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[2].glob("configs/*.yaml")), ids=str)
def test_every_recipe_of_the_repository_says_how_to_run_it(path):
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"jaxalign train configs/{path.name}" in line for line in comments)
