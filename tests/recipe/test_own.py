"""Objectives from outside the package."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml
from lib.recipes import minimal, with_stage

from jaxalign.core.objective import objective
from jaxalign.core.types import Loss, Metrics, Pairs, per_example
from jaxalign.errors import UserError
from jaxalign.objectives import OBJECTIVES
from jaxalign.recipe.diff import differences
from jaxalign.recipe.read import dump, parse, read, recorded, resolved
from jaxalign.recipe.schema import objective_settings

SOURCE = '''
from typing import Annotated

from annotated_types import Gt

from jaxalign import Loss, Pairs, objective
from jaxalign.core.types import per_example


@objective(Pairs, source="here")
def mine(policy: Pairs, *, gamma: Annotated[float, Gt(0)] = 0.5):
    """A margin.

    Args:
      policy: chosen and rejected.
      gamma: size of the margin.
    """
    return per_example(gamma - policy.chosen.logp + policy.rejected.logp), {}


def plain():
    """Not an objective."""


other = mine
'''


@objective(Pairs, source="here")
def made(policy: Pairs, *, gamma: float = 0.5) -> tuple[Loss, Metrics]:
    """A margin."""
    return per_example(gamma - policy.chosen.logp), {}


@pytest.fixture
def recipe_file(tmp_path):
    def write(source=SOURCE, **section):
        folder = tmp_path / "recipes"
        folder.mkdir(exist_ok=True)
        (folder / "mine.py").write_text(source)
        chosen = {"file": "mine.py", "name": "mine"} | section
        path = folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(with_stage(objective=chosen)))
        return str(path)

    return write


def of_stage(recipe):
    return objective_settings(recipe.stages["dpo"])


def test_an_objective_of_a_file_is_read_next_to_the_recipe(recipe_file):
    chosen, hyper = of_stage(read(recipe_file(gamma=0.25), []))
    assert (chosen.name, hyper) == ("mine", {"gamma": 0.25})


def test_a_hyper_parameter_of_a_file_is_a_flag(recipe_file):
    recipe = read(recipe_file(), ["--stages.dpo.objective.gamma", "0.75"])
    assert of_stage(recipe)[1] == {"gamma": 0.75}


def test_a_hyper_parameter_of_a_file_keeps_its_range(recipe_file):
    with pytest.raises(UserError, match=r"objective\.gamma: Input should be greater than 0"):
        read(recipe_file(gamma=0), [])


def test_help_shows_a_hyper_parameter_of_a_file(recipe_file, capsys):
    with pytest.raises(SystemExit):
        read(recipe_file(), ["--help"])
    out = capsys.readouterr().out
    assert "--stages.dpo.objective.gamma" in out
    assert "size of the margin" in out
    assert "sha256" not in out


def test_two_reads_of_one_file_are_equal(recipe_file):
    path = recipe_file()
    assert read(path, []) == read(path, [])


def test_the_dump_names_the_file_and_its_sum(recipe_file, tmp_path):
    section = yaml.safe_load(dump(read(recipe_file(), [])))["stages"]["dpo"]["objective"]
    assert section == {
        "name": "mine",
        "file": str(tmp_path / "recipes" / "mine.py"),
        "file_sha256": hashlib.sha256(SOURCE.encode()).hexdigest(),
        "gamma": 0.5,
    }


def test_the_dump_reads_back_equal(recipe_file, tmp_path):
    recipe = read(recipe_file(), [])
    (tmp_path / "dump.yaml").write_text(dump(recipe))
    assert read(str(tmp_path / "dump.yaml"), []) == recipe


def test_a_changed_file_is_refused_with_both_sums(recipe_file, tmp_path):
    (tmp_path / "dump.yaml").write_text(dump(read(recipe_file(), [])))
    recipe_file(SOURCE + "# changed\n")
    with pytest.raises(UserError) as caught:
        read(str(tmp_path / "dump.yaml"), [])
    assert "mine.py has changed" in str(caught.value)
    for source in (SOURCE, SOURCE + "# changed\n"):
        assert hashlib.sha256(source.encode()).hexdigest() in str(caught.value)


def test_the_record_of_a_run_is_read_without_its_file(recipe_file, tmp_path):
    recipe = read(recipe_file(), [])
    (tmp_path / "dump.yaml").write_text(dump(recipe))
    (tmp_path / "recipes" / "mine.py").unlink()
    assert recorded(str(tmp_path / "dump.yaml")) == resolved(recipe)


def test_the_record_of_a_run_differs_where_the_file_has_changed(recipe_file, tmp_path):
    (tmp_path / "dump.yaml").write_text(dump(read(recipe_file(), [])))
    now = read(recipe_file(SOURCE + "# changed\n"), [])
    (line,) = differences(recorded(str(tmp_path / "dump.yaml")), resolved(now))
    assert line.startswith("stages.dpo.objective.file_sha256: ")


def test_the_record_of_a_built_in_objective_has_the_defaults_of_new_settings(tmp_path):
    (tmp_path / "dump.yaml").write_text(yaml.safe_dump(minimal()))
    assert recorded(str(tmp_path / "dump.yaml")) == resolved(parse(minimal()))


@pytest.mark.parametrize(
    ("section", "source", "message"),
    [
        ({"file": "gone.py"}, SOURCE, r"gone\.py: No such file .* only code that a recipe runs"),
        ({"name": "mien"}, SOURCE, r"mine\.py: no objective 'mien'; did you mean 'mine'\?"),
        ({"name": "plain"}, SOURCE, r"mine\.py: 'plain' is a function, not an objective; put"),
        ({"name": "other"}, SOURCE, r"mine\.py: 'other' is the function 'mine'; use that name"),
        ({"name": 3}, SOURCE, r"give file and name as text \(got 'mine\.py' and 3\)"),
        ({}, "def f(:\n", r"mine\.py line 1: not valid Python: "),
        ({}, "import gone_module\n", r"running the file failed: ModuleNotFoundError: No module"),
        ({"name": "dpo"}, SOURCE.replace("mine", "dpo"), r"'dpo' is a built-in objective; rename"),
        ({"gama": 1}, SOURCE, r"objective\.gama: unknown; did you mean 'gamma'\?"),
        (
            {},
            SOURCE.replace("gamma: Annotated[float, Gt(0)]", "gamma"),
            r"'mine': annotate the hyper-parameter gamma with float",
        ),
        ({}, SOURCE.replace("gamma", "file"), r"'mine': file is a setting of its own; rename it"),
    ],
)
def test_a_wrong_file_is_one_error(recipe_file, section, source, message):
    with pytest.raises(UserError, match=message) as caught:
        read(recipe_file(source, **section), [])
    assert "stages.dpo.objective" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_objective_of_the_example_is_one_for_recipes():
    section = {"file": "add_an_objective.py", "name": "my_ipo", "tau": 0.5}
    folder = Path(__file__).parents[2] / "examples"
    assert of_stage(parse(with_stage(objective=section), folder=folder))[1] == {"tau": 0.5}


def test_an_objective_made_in_python_is_its_own_name():
    recipe = parse(with_stage(objective={"name": made, "gamma": 0.25}))
    assert of_stage(recipe) == (made, {"gamma": 0.25})
    assert resolved(recipe)["stages"]["dpo"]["objective"] == {"name": "made", "gamma": 0.25}


def test_a_built_in_objective_may_be_given_as_an_object():
    assert parse(with_stage(objective={"name": OBJECTIVES["dpo"]})) == parse(minimal())


def test_the_name_of_an_objective_made_in_python_is_not_enough_to_resume():
    with pytest.raises(UserError, match=r"no objective 'made'; .* for one of your own also give"):
        parse(with_stage(objective={"name": "made"}))
