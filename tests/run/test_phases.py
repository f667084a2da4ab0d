from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from jaxalign.run import phases
from jaxalign.run.phases import Phases


@pytest.fixture
def now(monkeypatch):
    """The time of the clock, in a list."""
    time = [0.0]
    monkeypatch.setattr(phases.time, "monotonic", lambda: time[0])
    return time


def clock(folder, terminal=False):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
    return Phases(folder, "dpo", console), console


def timings(folder):
    return json.loads((folder / "timings.json").read_text())


def test_the_file_holds_the_seconds_of_each_phase(tmp_path, now):
    measured, _ = clock(tmp_path)
    for name, seconds in (("saving", 2.0), ("reading data", 1.5), ("saving", 3.0)):
        with measured(name):
            now[0] += seconds
    assert timings(tmp_path) == {"reading data": 1.5, "saving": 5.0}


def test_a_second_counts_only_for_the_innermost_phase(tmp_path, now):
    measured, _ = clock(tmp_path)
    with measured("training"):
        now[0] += 1.0
        with measured("evaluating"):
            now[0] += 10.0
        now[0] += 1.0
    assert timings(tmp_path) == {"training": 2.0, "evaluating": 10.0}


def test_a_stage_without_a_folder_gets_none(tmp_path):
    measured, _ = clock(tmp_path / "dpo")
    with measured("reading data"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_time_between_phases_counts_for_none(tmp_path, now):
    measured, _ = clock(tmp_path)
    with measured("reading data"):
        now[0] += 1.0
    now[0] += 10.0
    with measured("exporting"):
        now[0] += 2.0
    assert timings(tmp_path) == {"reading data": 1.0, "exporting": 2.0}


def test_a_resumed_stage_adds_to_the_seconds_before_it(tmp_path, now):
    for _ in range(2):
        measured, _ = clock(tmp_path)
        with measured("training"):
            now[0] += 1.0
    assert timings(tmp_path) == {"training": 2.0}


@pytest.mark.parametrize("damaged", ["", "[]", '{"training": "long"}'])
def test_a_damaged_file_is_replaced(tmp_path, now, damaged):
    (tmp_path / "timings.json").write_text(damaged)
    measured, _ = clock(tmp_path)
    with measured("training"):
        now[0] += 1.0
    assert timings(tmp_path) == {"training": 1.0}


def test_a_phase_that_fails_is_counted(tmp_path, now):
    measured, _ = clock(tmp_path)

    def fail():
        with measured("saving"):
            now[0] += 1.0
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert timings(tmp_path) == {"saving": 1.0}
    assert measured.current == ""


def test_plain_output_has_a_line_for_a_phase_without_results_of_its_own(tmp_path):
    measured, console = clock(tmp_path)
    for name in phases.PHASES:
        with measured(name):
            pass
    assert console.file.getvalue().splitlines() == [
        "dpo: making data",
        "dpo: reading data",
        "dpo: compiling",
        "dpo: exporting",
    ]


def test_a_terminal_shows_the_phase_while_it_lasts(tmp_path):
    measured, console = clock(tmp_path, terminal=True)
    with measured("reading data"):
        pass
    assert "dpo: reading data" in console.file.getvalue()
