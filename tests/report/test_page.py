from __future__ import annotations

import base64
import html.parser
import json
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from lib import folders

from jaxalign.errors import UserError
from jaxalign.report import page, write_report

PNG = b"\x89PNG\r\n"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run whose report draws no curves: drawing takes most of the time of these tests."""
    monkeypatch.setattr(page.figures, "PANELS", {})
    return folders.write_run(tmp_path / "run")


def shown(folder) -> str:
    return write_report(folder).read_text(encoding="utf-8")


class Checker(html.parser.HTMLParser):
    """Collects the texts and the attributes of a page; a tag that is not closed fails."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.attributes = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *attribute) for attribute in attrs]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.mark.parametrize(
    "part",
    [
        "finished",
        "some/model",
        "0.0125",  # the learning rate
        "17",  # the seed
        "4,096",  # examples kept
        "dropped: empty response",
        "chosen cut on the right",
        "0.10.2",  # jax
        "1 x cpu",
        "0123abc",
        "61 s",
        "1,234 tokens/s (median)",
        "rewards/accuracies",
        "± 0.0625",
        "128 examples.",
        "dpo/model",
    ],
)
def test_the_page_of_a_run_shows(run, part):
    assert part in shown(run)


@pytest.mark.parametrize(
    ("objective", "panels"),
    [
        ("sft", "loss logps learning_rate grad_norm tokens"),
        ("dpo", "loss rewards accuracy margin logps learning_rate grad_norm tokens"),
        ("kto", "loss rewards logps learning_rate grad_norm tokens"),
        ("bradley_terry", "loss accuracy margin learning_rate grad_norm tokens"),
        ("plackett_luce", "loss accuracy logps learning_rate grad_norm tokens"),
    ],
)
def test_a_stage_has_the_curves_of_its_metrics(tmp_path, objective, panels):
    folder = folders.write_run(tmp_path / "run", objective)
    write_report(folder)
    found = {path.stem for path in (folder / "report").glob("*.png")}
    assert found == {f"stage_1_{objective}_{panel}" for panel in panels.split()}


def test_every_picture_is_embedded_and_saved(tmp_path):
    run = folders.write_run(tmp_path / "run", "sft")
    folders.compare(run)
    found = re.findall(r"data:image/png;base64,([^\"]+)", shown(run))
    saved = {path.read_bytes() for path in (run / "report").glob("*.png")}
    assert {base64.b64decode(data) for data in found} == saved
    assert len(saved) == 7
    assert all(data.startswith(PNG) for data in saved)


def test_the_page_loads_nothing_from_outside(run):
    folders.compare(run)
    text = shown(run)
    attributes = Checker(text).attributes
    links = [value for _, name, value in attributes if name in ("src", "href", "srcset", "data")]
    assert all(link.startswith("data:image/png;base64,") for link in links)
    assert not re.search(r"@import|url\(", text)


def test_the_page_shows_five_samples_side_by_side(run):
    folders.compare(run)
    text = shown(run)
    assert text.count('class="sample"') == 5
    for part in ("5.000 ± 0.000", "all ties", "0.875 ± 0.030", "before, true reward 5.00"):
        assert part in text


def test_samples_without_rewards_are_shown(run):
    folders.compare(run, rewards=False)
    text = shown(run)
    assert text.count('class="sample"') == 5
    assert "true reward" not in text


def test_line_breaks_of_an_answer_are_kept(run):
    folders.compare(run, text="one\ntwo")
    assert "one\ntwo" in Checker(shown(run)).texts


def test_a_long_answer_is_cut(run):
    folders.compare(run, text="x" * 1_000_000)
    text = shown(run)
    assert len(text) < 500_000
    assert "(996,000 more characters)" in text


def hostile(run):
    """Put a hostile text wherever a run can have one."""
    text = folders.HOSTILE
    folders.compare(run, text=text)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    for stage in recipe["stages"].values():
        stage["objective"] = {"name": text, text: text}
        stage["data"]["path"] = text
    recipe["stages"]["hostile <b>"] = recipe["stages"]["dpo"]
    recipe["model"]["path"] = text
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    shutil.copytree(run / "dpo", run / "hostile <b>")
    (run / "environment.json").write_text(json.dumps({"packages": {text: text}, "git": text}))
    lines = (run / "dpo" / "metrics.jsonl").read_text()
    values = {"step": 41, f"eval/{text}": 1.0, f"rewards/{text}$": 1.0}
    (run / "dpo" / "metrics.jsonl").write_text(lines + json.dumps(values))
    (run / "dpo" / "timings.json").write_text(json.dumps({text: 1.0}))
    (run / "dpo" / "data.json").write_text(json.dumps({"train": {"dropped": {text: 1}}}))


def test_hostile_text_is_escaped_on_the_page(run):
    hostile(run)
    text = shown(run)
    assert "<script" not in text
    assert "<b>[bold]" not in text
    assert "hostile &lt;b&gt;" in text
    assert text.count("&lt;script&gt;") > 10
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202e]", text)
    assert Checker(text).texts


def test_a_hostile_name_of_a_metric_can_be_drawn(tmp_path):
    run = folders.write_run(tmp_path / "run")
    hostile(run)
    write_report(run)
    assert (run / "report" / "stage_2_dpo_rewards.png").exists()


@pytest.mark.parametrize("name", ["../outside", "..", "/tmp/outside", "a/b/c", "a/../b", "a/"])
def test_a_stage_name_cannot_leave_the_folder(run, name):
    (run / "recipe.yaml").write_text(yaml.safe_dump({"stages": {name: {}}}))
    folders.write_stage(run.parent / "outside", "dpo")
    assert "is no name of a folder." in shown(run)
    assert sorted(path.name for path in (run / "report").iterdir()) == ["report.html"]


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("recipe.yaml", None, "recipe.yaml is missing."),
        ("recipe.yaml", "a: [", "recipe.yaml is damaged"),
        ("recipe.yaml", "- 1", "recipe.yaml is damaged"),
        ("recipe.yaml", "&a [*a]", "recipe.yaml is damaged"),
        ("environment.json", None, "environment.json is missing."),
        ("environment.json", "{", "environment.json is damaged and left out."),
        ("environment.json", '{"packages": [1], "git": {"a": []}}', "Versions and devices"),
        ("dpo/metrics.jsonl", None, "finished; 0 of 40 updates recorded."),
        ("dpo/metrics.jsonl", "what\n[]\n{}\n", "2 lines of dpo/metrics.jsonl are damaged"),
        ("dpo/metrics.jsonl", "\x00\xff", "finished; 0 of 40 updates recorded."),
        ("dpo/data.json", "[]", "dpo/data.json is damaged and left out."),
        ("dpo/data.json", '{"train": [], "held_out": {"kept": "many"}}', "Stage 2: dpo"),
        ("dpo/timings.json", '{"training": "long"}', "Stage 2: dpo"),
        ("dpo/timings.json", "[" * 100_000, "dpo/timings.json is damaged"),
        ("dpo/held_out.json", None, "The standard errors are not recorded."),
        ("dpo/held_out.json", '{"step": 40, "standard_errors": 3}', "errors are not recorded."),
        ("dpo/held_out.json", '{"step": 20, "standard_errors": {"loss": 9}}', "are not recorded."),
        ("samples.json", "{", "samples.json is damaged and left out."),
        ("samples.json", '{"samples": [1]}', "samples.json is damaged"),
        ("samples.json", '{"samples": [], "before": 1, "after": 2}', "Samples"),
    ],
)
def test_a_missing_or_damaged_file_is_a_sentence_on_the_page(run, file, content, sentence):
    (run / file).unlink(missing_ok=True)
    if content is not None:
        (run / file).write_bytes(content.encode("latin-1"))
    assert sentence in shown(run)


def test_settings_that_refer_to_themselves_do_not_stop_the_report(run):
    (run / "recipe.yaml").write_text("stages: {dpo: &a {objective: *a, lora: [*a]}}")
    assert "Stage 1: dpo" in shown(run)


def test_settings_that_multiply_do_not_fill_the_page(run):
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    (run / "recipe.yaml").write_text("\n".join([*levels, "mesh: *a8"]))
    assert len(shown(run)) < 1_000_000


@pytest.mark.parametrize("value", ["NaN", "Infinity", 1e300])
def test_metrics_that_are_not_finite_do_not_stop_the_report(run, value):
    lines = [{"step": 1, "loss": value, "eval/loss": value, "time/tokens_per_second": value}]
    (run / "dpo" / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    assert "Stage 2: dpo" in shown(run)


def test_an_unfinished_run_says_how_far_it_came(tmp_path):
    folder = folders.write_run(tmp_path / "run", finished=False)
    text = shown(folder)
    assert "stage dpo unfinished: 40 of 40 updates recorded" in text
    assert "dpo/model" not in text


def test_a_stage_that_has_not_begun_is_named(run):
    shutil.rmtree(run / "dpo")
    assert "stage dpo not started" in shown(run)


def test_a_run_whose_loss_was_not_finite_says_so(tmp_path):
    folder = folders.write_run(tmp_path / "run", finished=False)
    (folder / "dpo" / "not_finite-00000041.json").write_text("{}")
    assert "failed: the loss or gradient of update 41 was not finite" in shown(folder)


def test_a_run_that_has_only_begun_has_a_page(run):
    for name in ("sft", "dpo"):
        shutil.rmtree(run / name)
    assert "stage sft not started" in shown(run)


@pytest.mark.parametrize("kind", ["missing", "empty", "file"])
def test_a_folder_that_is_no_run_is_refused(tmp_path, kind):
    folder = tmp_path / "other"
    if kind == "empty":
        folder.mkdir()
    if kind == "file":
        folder.write_text("")
    with pytest.raises(UserError, match=r"no such folder|holds no run"):
        write_report(folder)


def test_figures_of_an_earlier_report_are_removed_and_other_files_kept(run):
    (run / "report").mkdir()
    for name in ("stage_9_old_loss.png", "mine.png"):
        (run / "report" / name).write_bytes(PNG)
    write_report(run)
    assert (run / "report" / "mine.png").exists()
    assert not (run / "report" / "stage_9_old_loss.png").exists()


def test_the_same_run_gives_the_same_bytes(run):
    folders.compare(run)
    assert shown(run) == shown(run)


def test_importing_the_report_imports_neither_jax_nor_matplotlib():
    code = "import sys, jaxalign.report; sys.exit(bool({'jax', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_writing_the_report_does_not_import_jax(run):
    code = (
        "import sys, pathlib, jaxalign.report\n"
        f"jaxalign.report.write_report(pathlib.Path({str(run)!r}))\n"
        "sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
