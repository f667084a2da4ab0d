"""The report of a run with stages that make data, in rounds."""

from __future__ import annotations

import io
import json

import pytest
import yaml
from lib import folders
from rich.console import Console

from jaxalign.report import page, terminal, write_report

SUMMARIES = {
    "answers": {"prompts": 12, "answers": 48, "tokens": 123456, "without_end": 0.8125},
    "scores": {"scores": 48, "mean": 0.375, "std": 0.25, "min": -1.5, "max": 2.0},
    "pairs": {"prompts": 12, "rows": 9, "dropped_prompts": {"nothing left": 3}, "measured": {}},
}
WORDS = {
    "answers": "prompts 12, answers 48, tokens 123,456, without end 0.8125",
    "scores": "scores 48, mean 0.375, std 0.25, min -1.5, max 2",
    "pairs": "prompts 12, rows 9, dropped prompts: nothing left 3",
}
SECTIONS = {"answers": "sample", "scores": "score", "pairs": "pair"}


def write_rounds(folder, *, finished=True, text="x.jsonl"):
    """Write a run of two rounds; the stages of data of the second may be unfinished."""
    folders.write_run(folder, "dpo")
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    trained = recipe["stages"].pop("dpo")
    for number in (1, 2):
        for name, kind in SECTIONS.items():
            recipe["stages"][f"round-{number}/{name}"] = {kind: {"data": text}}
            own = folder / f"round-{number}" / name
            own.mkdir(parents=True)
            if finished or number == 1:
                (own / "data.jsonl").write_text("{}\n")
                (own / "summary.json").write_text(json.dumps(SUMMARIES[name]))
        recipe["stages"][f"round-{number}/dpo"] = trained
        if finished or number == 1:
            folders.write_stage(folder / f"round-{number}/dpo", "dpo")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return folder


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch):
    monkeypatch.setattr(page.figures, "PANELS", {})


@pytest.fixture
def run(tmp_path):
    return write_rounds(tmp_path / "run")


def in_terminal(folder):
    console = Console(file=io.StringIO(), width=400, force_terminal=False)
    console.print(terminal(folder))
    return console.file.getvalue()


def on_page(folder):
    return write_report(folder).read_text(encoding="utf-8")


BOTH = pytest.mark.parametrize("shown", [in_terminal, on_page], ids=["terminal", "page"])


@BOTH
@pytest.mark.parametrize("name", WORDS)
def test_a_stage_that_makes_data_has_a_row_with_its_numbers(run, shown, name):
    text = shown(run)
    for number in (1, 2):
        assert f"round-{number}/{name}" in text
    assert text.count(WORDS[name]) == 2


@BOTH
def test_the_stages_of_rounds_that_train_are_shown_by_their_names(run, shown):
    text = shown(run)
    assert "round-1/dpo" in text
    assert "round-2/dpo/model" in text
    assert "finished" in text


def test_the_page_has_a_section_for_each_stage_that_trains(run):
    text = on_page(run)
    assert "Stage 1: round-1/dpo" in text
    assert "Stage 2: round-2/dpo" in text
    assert "Stage 3" not in text
    assert text.count("Data made") == 1


def test_the_figures_of_a_round_have_names_of_files(run, monkeypatch):
    drawn = {"loss": b"png"}
    monkeypatch.setattr(page.figures, "curves", lambda metrics: drawn)
    write_report(run)
    found = sorted(path.name for path in (run / "report").glob("*.png"))
    assert found == ["stage_1_round_1_dpo_loss.png", "stage_2_round_2_dpo_loss.png"]


@BOTH
def test_data_that_are_still_to_be_made_are_unfinished(tmp_path, shown):
    text = shown(write_rounds(tmp_path / "run", finished=False))
    assert "stage round-2/dpo not started" in text
    assert text.count(WORDS["answers"]) == 1
    assert text.count("unfinished") == 3


@BOTH
def test_a_run_whose_last_data_are_missing_is_not_finished(run, shown):
    (run / "round-2/pairs/data.jsonl").unlink()
    assert "stage round-2/pairs unfinished" in shown(run)


@BOTH
def test_a_damaged_summary_is_a_sentence(run, shown):
    (run / "round-1/scores/summary.json").write_text("{")
    text = shown(run)
    assert "round-1/scores/summary.json is damaged and left out." in text
    assert text.count(WORDS["scores"]) == 1


@BOTH
def test_a_lost_recipe_loses_no_stage_of_a_round(run, shown):
    (run / "recipe.yaml").unlink()
    text = shown(run)
    assert "recipe.yaml is missing." in text
    assert "round-1/dpo" in text
    assert "round-2/dpo" in text


def hostile(folder):
    """A run of rounds with a hostile text wherever it can have one."""
    text = folders.HOSTILE
    write_rounds(folder, text=text)
    found = {text: 1.0, "nested": {text: 2.0}, "words": text}
    (folder / "round-1/answers/summary.json").write_text(json.dumps(found))
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["stages"]["hostile <b>"] = {"sample": {"prompts": text}}
    (folder / "hostile <b>").mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return folder


def test_hostile_text_of_a_summary_is_escaped_on_the_page(tmp_path):
    text = on_page(hostile(tmp_path / "run"))
    assert "<script" not in text
    assert "<b>[bold]" not in text
    assert "hostile &lt;b&gt;" in text
    assert text.count("&lt;script&gt;") >= 2
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_the_terminal_obeys_no_text_of_a_summary(tmp_path):
    text = in_terminal(hostile(tmp_path / "run"))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert text.count("[bold]b[/bold]") == 2
    assert "hostile <b>" in text
