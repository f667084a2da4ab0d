import pytest
from lib import runs as h

from jaxalign.errors import UserError
from jaxalign.recipe.read import parse
from jaxalign.sweeps.grid import members, parse_vary, short_names


@pytest.fixture
def recipe(inputs, tmp_path):
    return h.recipe(inputs, tmp_path / "sweep", "dpo")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("run.seed=0..3", [0, 1, 2, 3]),
        ("run.seed=-1..1,7", [-1, 0, 1, 7]),
        ("a.b=0.1, 0.3", [0.1, 0.3]),
        ("a.b=5e-7,1E+2,2.5e-3", [5e-7, 100.0, 2.5e-3]),
        ("a.b=true,null,x", [True, None, "x"]),
        ("a.b=[1, 2],[3]", [[1, 2], [3]]),
        ("a.b={name: dpo}", [{"name": "dpo"}]),
    ],
)
def test_values_are_yaml_or_ranges(text, values):
    path = text.partition("=")[0]
    assert parse_vary([text]) == {path: values}


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["run.seed"], r"--vary: got 'run.seed'; wanted PATH=VALUE,VALUE or PATH=0..4"),
        (["run.seed="], "wanted PATH=VALUE,VALUE"),
        (["=1,2"], "wanted PATH=VALUE,VALUE"),
        (["a=1", "a=2"], "--vary: a comes twice; give all of its values at once"),
        (["a=[1"], r"--vary: a: '\[1' is no list of YAML values"),
        (["a=4..2"], "the range 4..2 is empty, or longer than 10,000"),
        (["a=0..99999"], "the range 0..99999 is empty, or longer than 10,000"),
    ],
)
def test_other_texts_are_refused(texts, said):
    with pytest.raises(UserError, match=said):
        parse_vary(texts)


def test_there_is_a_run_for_each_combination(recipe):
    runs = members(recipe, {"stages.dpo.objective.beta": [0.1, 0.3], "run.seed": [0, 1]})
    found = [(m.name, m.recipe.stages["dpo"].objective.beta, m.recipe.run.seed) for m in runs]
    assert found == [
        ("beta=0.1,seed=0", 0.1, 0),
        ("beta=0.1,seed=1", 0.1, 1),
        ("beta=0.3,seed=0", 0.3, 0),
        ("beta=0.3,seed=1", 0.3, 1),
    ]
    assert all(m.recipe.run.dir == f"{recipe.run.dir}/{m.name}" for m in runs)
    assert len({(m.recipe.run.compile_cache, m.recipe.run.token_store) for m in runs}) == 1


def test_a_value_that_is_no_name_of_a_file_is_named_by_its_place(recipe, inputs):
    paths = [f"{inputs}/pairs.jsonl", f"{inputs}/held_out.jsonl"]
    runs = members(recipe, {"stages.dpo.data.path": paths})
    assert [m.name for m in runs] == ["path=value-1", "path=value-2"]


def test_a_whole_section_may_vary(recipe):
    sections = [{"name": "dpo", "beta": 0.2}, {"name": "simpo"}]
    runs = members(recipe, {"stages.dpo.objective": sections})
    assert [m.recipe.stages["dpo"].objective.name for m in runs] == ["dpo", "simpo"]
    assert [m.name for m in runs] == ["objective=value-1", "objective=value-2"]


def test_names_of_settings_are_as_long_as_they_must_be():
    paths = ["stages.a.optimizer.learning_rate", "stages.b.optimizer.learning_rate", "run.seed"]
    assert list(short_names(paths).values()) == [
        "a.optimizer.learning_rate",
        "b.optimizer.learning_rate",
        "seed",
    ]


def test_a_stage_in_rounds_varies_in_every_round(inputs, tmp_path):
    one = h.values(inputs, tmp_path / "run", "dpo")["stages"]["dpo"]
    values = h.values(inputs, tmp_path / "run")
    values["stages"] = {"round": {"repeat": 2, "stages": {"dpo": one}}}
    runs = members(parse(values), {"stages.round.stages.dpo.objective.beta": [0.2, 0.4]})
    betas = [[stage.objective.beta for stage in m.recipe.stages.values()] for m in runs]
    assert betas == [[0.2, 0.2], [0.4, 0.4]]
    assert [m.name for m in runs] == ["beta=0.2", "beta=0.4"]


@pytest.mark.parametrize(
    ("vary", "said"),
    [
        ({}, "nothing varies; give at least one PATH=VALUE,VALUE"),
        ({"run.dir": ["a"]}, "run.dir is the same for all runs of a sweep; give it as a flag"),
        ({"mesh.data": [1]}, "mesh.data is the same for all runs of a sweep"),
        ({"mesh": [{"data": 1}]}, "mesh is the same for all runs of a sweep"),
        ({"model.dtype": ["float32", "bfloat16"]}, r"model\.dtype is the same for all runs"),
        ({"run.seed": []}, "run.seed has no value; give at least one"),
        ({"run.seed": [1, 1]}, "two runs have the same values; give each value once"),
        ({"stages.dpo.objective.beta": [0.5, "0.5"]}, "two runs have the same values"),
        ({"run.seed": range(200), "stages.dpo.steps": range(1, 52)}, "got 10,200 runs, wanted"),
        ({"stages.dpo.objective.betta": [1]}, "no 'betta'; did you mean 'beta'"),
        ({"stages.dpo.objective.beta": ["x"]}, "beta"),
    ],
)
def test_settings_that_cannot_vary_are_refused(recipe, vary, said):
    with pytest.raises(UserError, match=said):
        members(recipe, vary)
