from __future__ import annotations

import base64
import dataclasses
import html.parser
import io
import math
import re

import numpy as np
import pytest
from rich.console import Console

from jaxalign.errors import UserError
from jaxalign.report.page import Estimate, Report, evaluate_answers, render_text, write_report

HOSTILE = '<script>alert("x")</script> & [bold]b[/bold] \x1b[31m'
PNG = b"\x89PNG\r\n"


def by_length(prompt, answer):
    return float(len(answer))


def lines(stage):
    steps = [{"step": s, "loss": 1.0 / s, "grad_norm": 1.0} for s in range(1, 41)]
    if stage == "slpo":
        for s in steps:
            s |= {"rewards/chosen": 0.1, "rewards/rejected": -0.1, "rewards/accuracies": 0.5}
        steps.append({"step": 40, "eval/loss": 0.1, "eval/rewards/accuracies": 0.7})
    return steps


def make_report(tmp_path, **changes) -> Report:
    answers = [HOSTILE] * 6, ["short"] * 6, ["longer", "long", "tiny", "shore", "short", "sh"]
    report = Report(
        title="Quickstart",
        summary=evaluate_answers(*answers, by_length),
        accuracy=Estimate(0.875, 0.03),
        ranking_before=Estimate(0.5, 0.05),
        ranking_after=Estimate(0.75, 0.04),
        metrics={"sft": lines("sft"), "slpo": lines("slpo")},
        exported=tmp_path / "model",
        timings={"sft": 61.2, "slpo": 35.0},
    )
    return dataclasses.replace(report, **changes)


def page(tmp_path, **changes) -> str:
    return write_report(tmp_path, make_report(tmp_path, **changes)).read_text(encoding="utf-8")


def text(report, width=200) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(render_text(report))
    return console.file.getvalue()


def test_an_estimate_is_the_mean_and_its_standard_error():
    values = np.random.default_rng(0).normal(size=50)
    estimate = Estimate.of(list(values))
    assert estimate.mean == pytest.approx(values.sum() / 50)
    assert estimate.error == pytest.approx(
        math.sqrt(((values - values.mean()) ** 2).sum() / 49 / 50)
    )


def test_the_error_of_a_single_value_is_unknown():
    assert math.isnan(Estimate.of([1.0]).error)


def test_rewards_before_and_after_are_means_over_prompts():
    summary = evaluate_answers(["p", "q"], ["a", "aaa"], ["aaaa", "aa"], by_length)
    assert (summary.before.mean, summary.after.mean, summary.gain.mean) == (2.0, 3.0, 1.0)


def test_a_tie_is_half_a_win():
    summary = evaluate_answers(["p"] * 4, ["aa"] * 4, ["aaa", "aaa", "aa", "a"], by_length)
    assert summary.win_rate.mean == pytest.approx((1 + 1 + 0.5 + 0) / 4)


def test_the_error_of_the_gain_is_paired_by_prompt():
    summary = evaluate_answers(["p"] * 3, ["a", "aa", "aaa"], ["aa", "aaa", "aaaa"], by_length)
    assert summary.gain.error == 0.0
    assert summary.before.error > 0.0


def test_no_prompts_are_refused():
    with pytest.raises(UserError, match="report: got no prompts, wanted at least one"):
        evaluate_answers([], [], [], by_length)


def test_lists_of_different_length_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        evaluate_answers(["p", "q"], ["a", "b"], ["a"], by_length)


def test_the_page_shows_every_number(tmp_path):
    shown = page(tmp_path)
    for part in (
        "Quickstart",
        "5.000 ± 0.000",
        "0.500 ± 0.050",
        "0.750 ± 0.040",
        "+0.250",
        "61.2 s",
    ):
        assert part in shown


def test_the_page_shows_five_samples(tmp_path):
    assert page(tmp_path).count('<td class="answer">short</td>') == 5 + 1  # one is an `after`


def test_hostile_text_is_escaped_on_the_page(tmp_path):
    shown = page(tmp_path, title=HOSTILE, metrics={HOSTILE: lines("sft")})
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown
    assert "\x1b" not in shown


def test_the_page_is_balanced(tmp_path):
    stack = []

    class Checker(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "img"):
                stack.append(tag)

        def handle_endtag(self, tag):
            assert stack.pop() == tag

    Checker().feed(page(tmp_path, title=HOSTILE))
    assert stack == []


def test_the_page_needs_nothing_from_outside(tmp_path):
    assert not re.search(r'(src|href)="(?!data:)', page(tmp_path))


def test_every_picture_is_embedded_and_saved(tmp_path):
    found = re.findall(r"data:image/png;base64,([^\"]+)", page(tmp_path))
    saved = {path.read_bytes() for path in tmp_path.glob("*.png")}
    assert {base64.b64decode(data) for data in found} == saved
    assert len(saved) == 3
    assert all(data.startswith(PNG) for data in saved)


def test_a_stage_name_cannot_leave_the_folder(tmp_path):
    folder = tmp_path / "report"
    write_report(folder, make_report(tmp_path, metrics={"../../x": lines("sft")}))
    assert sorted(p.name for p in folder.iterdir()) == [
        "answers.png",
        "report.html",
        "stage_1_x.png",
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["report"]


def test_stages_of_one_name_have_a_picture_each(tmp_path):
    page(tmp_path, metrics={"A b": lines("sft"), "a-b": lines("sft")})
    assert sorted(p.name for p in tmp_path.glob("stage*")) == ["stage_1_a_b.png", "stage_2_a_b.png"]


def test_a_stage_without_metrics_has_no_picture(tmp_path):
    page(tmp_path, metrics={"sft": []})
    assert [p.name for p in tmp_path.glob("*.png")] == ["answers.png"]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_non_finite_metrics_do_not_stop_the_report(tmp_path, loss):
    page(tmp_path, metrics={"sft": [{"step": 1, "loss": loss, "grad_norm": 1.0}]})
    assert (tmp_path / "stage_1_sft.png").exists()


def test_equal_rewards_do_not_stop_the_report(tmp_path):
    summary = evaluate_answers(["p"], ["a"], ["b"], by_length)
    assert "± nan" in page(tmp_path, summary=summary)


def test_the_same_report_gives_the_same_bytes(tmp_path):
    assert page(tmp_path) == page(tmp_path)


def test_the_terminal_view_shows_every_number(tmp_path):
    shown = text(make_report(tmp_path))
    for part in ("Quickstart", "5.000 ± 0.000", "0.500 ± 0.050", "0.750 ± 0.040", "+0.250", "61 s"):
        assert part in shown


def test_the_terminal_view_obeys_no_text_of_an_answer(tmp_path):
    shown = text(make_report(tmp_path, title=HOSTILE), width=400)
    assert "\x1b" not in shown
    assert "[bold]b[/bold]" in shown
