from __future__ import annotations

import io
import json

import pytest
from lib import folders
from rich.console import Console

from jaxalign.errors import UserError
from jaxalign.report import terminal


@pytest.fixture
def run(tmp_path):
    return folders.write_run(tmp_path / "run")


def shown(folder, width=200) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(terminal(folder))
    return console.file.getvalue()


@pytest.mark.parametrize(
    "part", ["finished", "40/40", "1,234", "reading data 3.5 s", "0.0625", "dpo/model", "128"]
)
def test_the_terminal_view_of_a_run_shows(run, part):
    assert part in shown(run)


def test_a_comparison_shows_every_number(run):
    folders.compare(run)
    for part in ("true reward", "5.000 ± 0.000", "all ties", "0.875 ± 0.030", "5.00 → 6.00"):
        assert part in shown(run)


def test_a_comparison_without_rewards_shows_the_answers(run):
    folders.compare(run, rewards=False)
    assert "tiny" in shown(run)
    assert "true reward" not in shown(run)


def test_the_terminal_obeys_no_text_of_a_run(run):
    folders.compare(run, text=folders.HOSTILE)
    (run / "dpo" / "timings.json").write_text(json.dumps({folders.HOSTILE: 1.0}))
    text = shown(run, width=400)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert text.count("[bold]b[/bold]") == 6


def test_a_damaged_file_is_a_sentence(run):
    (run / "environment.json").unlink()
    (run / "dpo" / "timings.json").write_text("{")
    assert "environment.json is missing." in shown(run)
    assert "dpo/timings.json is damaged and left out." in shown(run)


def test_an_unfinished_run_names_its_newest_model(tmp_path):
    folder = folders.write_run(tmp_path / "run", finished=False)
    assert "newest checkpoint" in shown(folder)
    assert "sft/model" in shown(folder)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        terminal(tmp_path)
