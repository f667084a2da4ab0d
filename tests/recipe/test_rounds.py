"""Rounds: written out one after another, with the paths in them."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from jaxalign.errors import UserError
from jaxalign.recipe import read as config
from jaxalign.recipe.diff import differences
from jaxalign.recipe.overrides import given_recipe, stage_name
from jaxalign.recipe.read import dump, parse, recorded, resolved
from jaxalign.run.train import check_folder

TRAINS = {"objective": {"name": "dpo"}, "data": {"path": "{pairs}"}}
ROUND = {
    "answers": {"sample": {"prompts": "prompts.jsonl"}},
    "scores": {"score": {"data": "{answers}", "by": {"numeric": {"answer": "gold"}}}},
    "pairs": {"pair": {"data": "{scores}", "how": "best_worst"}},
    "dpo": TRAINS,
}
SFT = {"objective": {"name": "sft"}, "data": {"path": "demos.jsonl"}}


def values(*, repeat=2, before=None, inside=None, after=None):
    """The plain values of a recipe with rounds: a stage `sft`, the rounds, and stages after them.

    `inside` replaces stages of a round, or settings of one: `{"pairs": {"pair": {...}}}`.
    """
    stages = {name: ROUND[name] | (inside or {}).get(name, {}) for name in ROUND}
    stages |= {name: stage for name, stage in (inside or {}).items() if name not in ROUND}
    written = {"sft": SFT} | (before or {}) | {"round": {"repeat": repeat, "stages": stages}}
    return {"run": {"dir": "r"}, "model": {"path": "m"}, "stages": written | (after or {})}


def pairing(**options):
    return {"pairs": {"pair": ROUND["pairs"]["pair"] | options}}


def scoring(**options):
    return {"scores": {"score": ROUND["scores"]["score"] | options}}


def sampling(**options):
    return {"answers": {"sample": ROUND["answers"]["sample"] | options}}


@pytest.fixture
def recipe_file(tmp_path):
    def write(**changes):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(values(**changes), sort_keys=False))
        return str(path)

    return write


# Names and paths


def test_the_stages_of_a_round_are_written_out_in_the_order_of_the_run():
    names = ["answers", "scores", "pairs", "dpo"]
    rounds = [f"round-{i}/{name}" for i in (1, 2) for name in names]
    assert list(parse(values(after={"last": SFT})).stages) == ["sft", *rounds, "last"]


def test_a_name_in_a_round_is_the_stage_of_the_same_round():
    recipe = parse(values())
    for i in (1, 2):
        assert recipe.stages[f"round-{i}/scores"].score.data == f"{{round-{i}/answers}}"
        assert recipe.stages[f"round-{i}/dpo"].data.path == f"{{round-{i}/pairs}}"


def test_a_name_after_the_rounds_is_the_stage_of_the_last_one():
    after = {"ipo": {"objective": {"name": "ipo"}, "data": {"path": "{pairs}"}}}
    after["more"] = {"sample": {"prompts": "p.jsonl", "model": "{dpo}"}}
    stages = parse(values(after=after)).stages
    assert stages["ipo"].data.path == "{round-2/pairs}"
    assert stages["more"].sample.model == "{round-2/dpo}"


def test_a_written_out_name_reaches_one_round_from_outside():
    after = {"more": {"sample": {"prompts": "p.jsonl", "model": "{round-1/dpo}"}}}
    assert parse(values(after=after)).stages["more"].sample.model == "{round-1/dpo}"


def test_a_name_that_a_round_shares_with_a_stage_before_is_the_newest_of_them():
    before = {"dpo": SFT | {"objective": {"name": "dpo"}}}
    stages = parse(values(before=before, inside=sampling(model="{dpo}"))).stages
    assert stages["round-1/answers"].sample.model == "{dpo}"
    assert stages["round-2/answers"].sample.model == "{round-1/dpo}"


@pytest.mark.parametrize("kind", ["model", "reference"])
def test_a_scorer_names_a_model_that_a_stage_has_trained(kind):
    by = [{"log_ratio": {"model": "m", "reference": "m"} | {kind: "{sft}/x"}}]
    by.append({"reward_model": {"model": "{sft}"}})
    stage = parse(values(inside=scoring(by=by))).stages["round-2/scores"]
    assert stage.score.by[0]["log_ratio"][kind] == "{sft}/x"


def test_paths_in_mixtures_and_held_out_data_name_stages_too():
    data = {"mixture": [{"path": "{pairs}"}, {"path": "x.jsonl"}], "eval_path": "{pairs}"}
    stage = parse(values(inside={"dpo": {"data": data}})).stages["round-2/dpo"]
    assert [source.path for source in stage.data.mixture] == ["{round-2/pairs}", "x.jsonl"]
    assert stage.data.eval_path == "{round-2/pairs}"


def test_braces_in_other_settings_are_left_alone():
    by = {"regex": {"pattern": "{pairs}[0-9]{2}"}}
    stage = parse(values(inside=scoring(by=by))).stages["round-2/scores"]
    assert stage.score.by == by


def test_a_name_becomes_the_data_or_the_model_of_its_stage():
    recipe = parse(values())
    assert recipe.locate("{round-2/pairs}") == "r/round-2/pairs/data.jsonl"
    assert recipe.locate("{round-1/dpo}/x") == "r/round-1/dpo/model/x"
    assert recipe.locate("{elsewhere}/x") == "{elsewhere}/x"


def test_a_stage_of_a_round_starts_from_the_newest_model():
    recipe = parse(values())
    assert recipe.before("round-1/dpo") == "sft"
    assert recipe.before("round-2/answers") == "round-1/dpo"
    assert list(recipe.training) == ["sft", "round-1/dpo", "round-2/dpo"]


# Mistakes

AT = "stages.round.stages"
MISTAKES = {
    "an unknown name": (
        {"inside": scoring(data="{answer}")},
        rf"{AT}.scores.score.data: no earlier stage 'answer'; did you mean 'answers'\?",
    ),
    "a name of a later stage": (
        {"inside": sampling(prompts="{pairs}")},
        f"{AT}.answers.sample.prompts: no earlier stage 'pairs'; .*known: sft",
    ),
    "a name before the first stage": (
        {"before": {"sft": SFT | {"data": {"path": "{x}"}}}},
        r"stages.sft.data.path: no earlier stage 'x'; no stage is before it \(got '{x}'\)",
    ),
    "a model where data is wanted": (
        {"inside": {"dpo": {"data": {"path": "{sft}"}}}},
        f"{AT}.dpo.data.path: 'sft' trains a model; name a stage that samples, scores or pairs",
    ),
    "data where a model is wanted": (
        {"after": {"more": {"sample": {"prompts": "p.jsonl", "model": "{pairs}"}}}},
        "stages.more.sample.model: 'pairs' makes data; name a stage that trains a model",
    ),
    "data as a reference": (
        {"inside": {"dpo": {"reference": {"path": "{pairs}"}}}},
        f"{AT}.dpo.reference.path: 'pairs' makes data",
    ),
    "data as the model of a scorer": (
        {"inside": scoring(by={"log_ratio": {"model": "{answers}", "reference": "m"}})},
        f"{AT}.scores.score.by.log_ratio.model: 'answers' makes data",
    ),
    "the folder of a round": (
        {"before": {"round-2": SFT}},
        "stages.round-2: round 2 of 'round' has the same folder; rename one of them",
    ),
    "rounds in rounds": (
        {"inside": {"more": {"repeat": 2, "stages": {"sft": SFT}}}},
        f"{AT}.more: rounds within rounds are not supported",
    ),
    "no round": ({"repeat": 0}, "stages.round.repeat: .*greater than 0 .*got 0"),
    "half a round": ({"repeat": 1.5}, "stages.round.repeat: .*integer.*got 1.5"),
    "rounds without stages": (
        {"after": {"empty": {"repeat": 2, "stages": {}}}},
        "stages.empty.stages: give at least one stage to repeat",
    ),
    "rounds without a number": (
        {"after": {"again": {"stages": {"sft": SFT}}}},
        r"stages.again.objective: missing; .* or of rounds \(repeat, stages\)",
    ),
    "a name that is no folder": (
        {"inside": {"a b": SFT}},
        f"{AT}.a b: the name is a folder and a flag; use a-z, 0-9, - and _",
    ),
    "two kinds in one stage": (
        {"inside": {"pairs": {"sample": {"prompts": "p"}}}},
        f"{AT}.pairs.pair: unknown; known: sample",
    ),
    "an option that the method does not read": (
        {"inside": pairing(beta=0.1)},
        f"{AT}.pairs.pair.beta: `how: best_worst` does not read it; leave it out",
    ),
    "an option that the method needs": (
        {"inside": pairing(how="rso", beta=0.1)},
        f"{AT}.pairs.pair.keep: missing; `how: rso` needs it",
    ),
    "an unknown option": (
        {"inside": sampling(temprature=0.5)},
        f"{AT}.answers.sample.temprature: unknown; did you mean 'temperature'",
    ),
    "an option out of range": (
        {"inside": sampling(top_p=0.0)},
        f"{AT}.answers.sample.top_p: .*greater than 0 .*got 0.0",
    ),
    "a model and an endpoint": (
        {"inside": sampling(model="{sft}", endpoint={"endpoint": "http://x", "model": "m"})},
        f"{AT}.answers.sample.model: give a model or an endpoint, not both",
    ),
    "an unknown scorer": (
        {"inside": scoring(by={"numerc": {}})},
        f"{AT}.scores.score.by: no scorer 'numerc'; did you mean 'numeric'",
    ),
    "a wrong option of a scorer": (
        {"inside": scoring(by=["exact", {"numeric": {"tolerance": -1}}])},
        f"{AT}.scores.score.by.1.numeric.tolerance: .*greater than or equal to 0",
    ),
}


@pytest.mark.parametrize(("changes", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_rounds_is_named_as_it_is_written(changes, message):
    with pytest.raises(UserError, match=message):
        parse(values(**changes))


def test_mistakes_of_all_kinds_come_at_once():
    wrong = scoring(by={"length": {"target": 3}}, data="{answer}") | pairing(most=3)
    with pytest.raises(UserError) as error:
        parse(values(inside=wrong, before={"round-1": SFT}))
    lines = str(error.value).split("\n")
    assert sorted(line.split(": ")[1] for line in lines) == [
        "stages.round-1",
        f"{AT}.pairs.pair.most",
        f"{AT}.scores.score.by.length.limit",
        f"{AT}.scores.score.data",
    ]
    assert all(line.startswith("recipe: ") for line in lines)


def test_a_wrong_scorer_is_named_with_the_file_of_its_recipe(recipe_file):
    path = recipe_file(inside=scoring(by=[]))
    with pytest.raises(UserError, match=re.escape(f"{path}: {AT}.scores.score.by: give at least")):
        config.read(path, [])


def test_a_recipe_that_trains_nothing_is_refused():
    only = values()
    only["stages"] = {"answers": ROUND["answers"]}
    with pytest.raises(UserError, match="stages: no stage trains a model; add one, or use"):
        parse(only)


def test_a_stage_that_makes_data_is_not_one_that_trains():
    recipe = parse(values())
    assert stage_name(recipe, None) == "round-2/dpo"
    assert stage_name(recipe, "round-1/dpo") == "round-1/dpo"
    with pytest.raises(UserError, match="stage round-1/pairs: it makes data and trains no model"):
        stage_name(recipe, "round-1/pairs")
    with pytest.raises(UserError, match=r"stage dpo: the recipe has no such stage.*round-1/dpo"):
        stage_name(recipe, "dpo")


# Records, flags and overrides


def test_the_dump_of_rounds_reads_back_equal(recipe_file, tmp_path):
    recipe = config.read(recipe_file(), [])
    (tmp_path / "dump.yaml").write_text(dump(recipe))
    assert config.read(str(tmp_path / "dump.yaml"), []) == recipe
    assert recorded(str(tmp_path / "dump.yaml")) == resolved(recipe)


def test_a_file_its_values_and_its_checked_recipe_are_one(recipe_file):
    recipe = parse(values())
    assert config.read(recipe_file(), []) == recipe
    assert given_recipe(values(), None) == given_recipe(recipe, None) == recipe


def test_a_flag_changes_a_setting_of_every_round(recipe_file):
    flags = ["--stages.round.stages.dpo.steps", "3", "--stages.round.repeat", "3"]
    flags += ["--stages.round.stages.answers.sample.n", "4"]
    recipe = config.read(recipe_file(), flags)
    assert [recipe.stages[f"round-{i}/dpo"].steps for i in (1, 2, 3)] == [3, 3, 3]
    assert {recipe.stages[f"round-{i}/answers"].sample.n for i in (1, 2, 3)} == {4}


def test_a_wrong_flag_of_a_round_is_named_as_it_was_typed(recipe_file):
    with pytest.raises(UserError, match=r"^--stages.round.stages.answers.sample.n: .*got 0"):
        config.read(recipe_file(), ["--stages.round.stages.answers.sample.n", "0"])


def test_an_override_changes_every_round_or_a_written_out_one():
    changed = given_recipe(values(), {"stages.round.stages.dpo.steps": 3})
    assert [changed.stages[f"round-{i}/dpo"].steps for i in (1, 2)] == [3, 3]
    one = given_recipe(parse(values()), {"stages.round-2/dpo.steps": 5})
    assert [one.stages[f"round-{i}/dpo"].steps for i in (1, 2)] == [None, 5]


def test_an_override_of_no_setting_names_the_near_miss():
    with pytest.raises(UserError, match=r"stages.round.stages.dpo.stps: no 'stps'; did you mean"):
        given_recipe(values(), {"stages.round.stages.dpo.stps": 3})


# The folder of a run


@pytest.fixture
def begun(tmp_path):
    """The recipe of a run all of whose stages have left something in its folder."""
    recipe = at(tmp_path, values())
    for name in recipe.stages:
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "recipe.yaml").write_text(dump(recipe))
    return tmp_path


def at(folder: Path, plain):
    recipe = parse(plain)
    return dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, dir=str(folder)))


def test_more_rounds_continue_a_finished_run(begun):
    check_folder(at(begun, values(repeat=3)))


def test_the_stages_after_a_finished_run_are_free(begun):
    check_folder(at(begun, values(after={"last": SFT})))


CHANGES = {
    "fewer rounds": ({"repeat": 1}, r"stages: \[.*round-2/dpo'\] -> \[.*round-1/dpo'\]"),
    "another way to pair": (
        {"inside": pairing(margin=0.5)},
        "stages.round-1/pairs.pair.margin: None -> 0.5",
    ),
    "another scorer": (
        {"inside": scoring(by={"numeric": {"answer": "x"}})},
        "stages.round-2/scores.score.by.numeric.answer: gold -> x",
    ),
    "another temperature": (
        {"inside": sampling(temperature=0.5), "repeat": 3},
        "stages.round-1/answers.sample.temperature: 1.0 -> 0.5",
    ),
}


@pytest.mark.parametrize(("changes", "message"), CHANGES.values(), ids=CHANGES)
def test_a_changed_setting_of_a_begun_round_is_refused(begun, changes, message):
    with pytest.raises(UserError, match=message):
        check_folder(at(begun, values(**changes)))


def test_a_setting_of_a_round_that_has_not_begun_may_change(begun):
    third = given_recipe(parse(values(repeat=3)), {"stages.round-3/pairs.pair.margin": 0.5})
    recipe = dataclasses.replace(third, run=dataclasses.replace(third.run, dir=str(begun)))
    check_folder(recipe)
    before, now = resolved(at(begun, values(repeat=3))), resolved(recipe)
    assert differences(before, now) == ["stages.round-3/pairs.pair.margin: None -> 0.5"]
