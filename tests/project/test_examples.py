from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def printed(capsys):
    def run(name):
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_the_added_objective_has_its_published_value_and_raises_the_chosen_response(printed):
    assert printed("add_an_objective.py") == (
        "loss at the reference 1.000, expected 1.000\n"
        "gradient per token of the chosen responses -1.000: it raises them\n"
    )
