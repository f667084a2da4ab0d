"""The report of a run: answers before and after alignment, curves, a page and a terminal view."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 5  # samples in a report
BLUE, VERMILLION = "#0072B2", "#D55E00"  # told apart by colour-blind readers (Okabe and Ito)
GREY = "#BBBBBB"
PANELS = {  # label of the y axis: metrics drawn there, and how the legend calls them
    "loss": {"loss": "loss"},
    "reward, nats": {"rewards/chosen": "chosen", "rewards/rejected": "rejected"},
    "reward accuracy, share of pairs": {"rewards/accuracies": "accuracy"},
    "gradient norm": {"grad_norm": "gradient norm"},
}
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem }
h1 { font-size: 1.7rem; margin-bottom: .2rem } h2 { font-size: 1.2rem; margin-top: 2.2rem }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .4rem .8rem .4rem 0;
  border-bottom: 1px solid #ddd }
th { font-weight: 600; color: #555 } td.number { font-variant-numeric: tabular-nums;
  white-space: nowrap }
td.answer { font-family: ui-monospace, monospace; font-size: .85rem; overflow-wrap: anywhere }
img { max-width: 100% } .note { color: #666; font-size: .9rem } code { overflow-wrap: anywhere }
"""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean and its standard error; the error of a single value is unknown, nan."""

    mean: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Mean of independent values [n], and their standard deviation over the root of n."""
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        return cls(float(np.mean(values)), spread / math.sqrt(len(values)))

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.error:.3f}"


@dataclasses.dataclass(frozen=True)
class Sample:
    """The answers to one prompt, and their true rewards."""

    prompt: str
    before: str
    after: str
    reward_before: float
    reward_after: float


@dataclasses.dataclass(frozen=True)
class Summary:
    """How answers changed: estimates over prompts, each with its standard error."""

    before: Estimate  # true reward before alignment
    after: Estimate  # true reward after it
    gain: Estimate  # after - before, paired by prompt
    win_rate: Estimate  # share of prompts with the better answer after; a tie counts half
    samples: tuple[Sample, ...]  # one per prompt


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What a report shows."""

    title: str
    summary: Summary
    accuracy: Estimate  # share of held-out pairs whose chosen response has the higher reward, after
    ranking_before: Estimate  # the share with more log-probability per token instead
    ranking_after: Estimate
    metrics: Mapping[str, Sequence[Mapping[str, Any]]]  # {stage: lines of its metrics.jsonl}
    exported: Path  # folder of the aligned checkpoint
    timings: Mapping[str, float]  # {part of the run: seconds}


def evaluate_answers(
    prompts: Sequence[str],
    before: Sequence[str],
    after: Sequence[str],
    reward: Callable[[str, str], float],
) -> Summary:
    """Compare the answers of two models to the same prompts [n] by a known reward.

    Raises:
      UserError: there are no prompts.
      ValueError: the three lists differ in length.
    """
    if not prompts:
        raise UserError("report: got no prompts, wanted at least one; give held-out data")
    samples = tuple(
        Sample(p, b, a, reward(p, b), reward(p, a))
        for p, b, a in zip(prompts, before, after, strict=True)
    )
    gains = [s.reward_after - s.reward_before for s in samples]
    return Summary(
        before=Estimate.of([s.reward_before for s in samples]),
        after=Estimate.of([s.reward_after for s in samples]),
        gain=Estimate.of(gains),
        win_rate=Estimate.of([0.5 + 0.5 * float(np.sign(g)) for g in gains]),
        samples=samples,
    )


def write_report(folder: Path, report: Report) -> Path:
    """Write `report.html`, which needs no other file, and its pictures as PNG files beside it.

    Args:
      folder: made if missing.
      report: what to show.

    Returns:
      The path of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"Answers": _answers_figure(report.summary)}
    for number, (stage, lines) in enumerate(report.metrics.items(), 1):
        if (figure := _curves_figure(lines)) is not None:
            figures[f"Stage {number}: {stage}"] = figure
    pictures = {}
    for name, figure in figures.items():
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=150)
        pictures[name] = png.getvalue()
        file = re.sub(r"[^a-z0-9]+", "_", name.lower()) + ".png"
        (folder / file).write_bytes(png.getvalue())
    path = folder / "report.html"
    path.write_text(_page(report, pictures), encoding="utf-8")
    return path


def render_text(report: Report) -> Group:
    """The report for a terminal: print it with a `rich` console."""
    scores = Table(title=Text(_visible(report.title)), title_justify="left")
    for column in ("", "before", "after", "change"):
        scores.add_column(column)
    for row in _score_rows(report):
        scores.add_row(*row)
    samples = Table(title=f"first {SHOWN} held-out prompts, one sample each", title_justify="left")
    for column in ("prompt", "before", "after", "reward"):
        samples.add_column(column, overflow="fold")
    for s in report.summary.samples[:SHOWN]:
        cells = (_visible(s.prompt), _visible(s.before), _visible(s.after), _rewards(s))
        samples.add_row(*(Text(cell) for cell in cells))
    spent = "  ".join(f"{name} {seconds:.0f} s" for name, seconds in report.timings.items())
    return Group(
        scores, samples, Text(f"time: {spent}"), Text(f"aligned checkpoint: {report.exported}")
    )


def _score_rows(report: Report) -> list[tuple[str, str, str, str]]:
    s = report.summary
    change = report.ranking_after.mean - report.ranking_before.mean
    rankings = str(report.ranking_before), str(report.ranking_after), f"{change:+.3f}"
    return [
        ("true reward of an answer", str(s.before), str(s.after), _signed(s.gain)),
        ("win rate (a tie is half)", "", str(s.win_rate), ""),
        # The reward is measured from the model before: there every pair is a tie.
        ("reward accuracy, pairs", "all ties", str(report.accuracy), ""),
        ("same, by logp per token", *rankings),
    ]


def _signed(estimate: Estimate) -> str:
    return f"{estimate.mean:+.3f} ± {estimate.error:.3f}"


def _rewards(sample: Sample) -> str:
    return f"{sample.reward_before:.2f} → {sample.reward_after:.2f}"


def _visible(text: str) -> str:
    """Control characters, which a page or a terminal would obey, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _page(report: Report, pictures: Mapping[str, bytes]) -> str:
    def cells(row: Sequence[str], kind: str = "") -> str:
        return "".join(f'<td class="{kind}">{html.escape(_visible(cell))}</td>' for cell in row)

    def table(head: Sequence[str], rows: Sequence[str]) -> str:
        top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
        return f"<table><tr>{top}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"

    def picture(name: str) -> str:
        data = base64.b64encode(pictures[name]).decode()
        label = html.escape(_visible(name), quote=True)
        return f'<img alt="{label}" src="data:image/png;base64,{data}">'

    samples = report.summary.samples
    title = html.escape(_visible(report.title))
    scores = [cells(row[:1]) + cells(row[1:], "number") for row in _score_rows(report)]
    answers = [
        cells([s.prompt, s.before, s.after], "answer") + cells([_rewards(s)], "number")
        for s in samples[:SHOWN]
    ]
    times = [cells([k]) + cells([f"{v:.1f} s"], "number") for k, v in report.timings.items()]
    curves = "".join(
        f'<h2>{html.escape(_visible(name))}</h2>{picture(name)}<p class="note">Faint: every '
        "update; line: running mean; circles: held-out data.</p>"
        for name in pictures
        if name != "Answers"
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><h1>{title}</h1>"
        f"<h2>Result</h2>{table(['', 'before', 'after', 'change'], scores)}"
        f'<p class="note">{len(samples)} held-out prompts; ± is one standard error; the change of '
        f"the reward is paired by prompt.</p>{picture('Answers')}"
        f"<h2>Samples</h2>{table(['prompt', 'before', 'after', 'reward'], answers)}"
        f'<p class="note">The first {min(SHOWN, len(samples))} held-out prompts, one sample each, '
        f"not selected.</p>{curves}<h2>Time</h2>{table(['part', 'spent'], times)}"
        f"<h2>Aligned checkpoint</h2><p><code>{html.escape(_visible(str(report.exported)))}</code>"
        "</p></body></html>\n"
    )


def _answers_figure(summary: Summary) -> Figure:
    figure = _figure(2)
    left, right = figure.axes
    before = [s.reward_before for s in summary.samples]
    after = [s.reward_after for s in summary.samples]
    low, high = min(before + after), max(before + after)
    bins = np.linspace(low, high if high > low else low + 1.0, 11).tolist()
    left.hist([before, after], bins, color=[BLUE, VERMILLION], label=["before", "after"])
    for mean, colour in ((summary.before.mean, BLUE), (summary.after.mean, VERMILLION)):
        left.axvline(mean, color=colour, linestyle="--", linewidth=1.2)
    left.set(xlabel="true reward (dashed: mean)", ylabel="answers")
    left.legend(frameon=False)
    signs = np.sign(np.subtract(after, before))
    counts = [int(np.sum(signs == sign)) for sign in (1, 0, -1)]
    bars = right.bar(["better", "equal", "worse"], counts, color=[VERMILLION, GREY, BLUE])
    right.bar_label(bars)
    right.set(xlabel="answer after, against before", ylabel="prompts")
    return figure


def _curves_figure(lines: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Training metrics over updates, one panel per kind; None where there are none of them."""
    drawn = {
        label: {n: word for n, word in names.items() if any(n in line for line in lines)}
        for label, names in PANELS.items()
    }
    drawn = {label: names for label, names in drawn.items() if names}
    if not drawn:
        return None
    figure = _figure(len(drawn))
    for axes, (label, names) in zip(figure.axes, drawn.items(), strict=True):
        for (name, word), colour in zip(names.items(), (BLUE, VERMILLION), strict=False):
            _draw(axes, lines, name, word, colour)
        axes.set(xlabel="update", ylabel=label)
        if len(axes.get_legend_handles_labels()[1]) > 1:
            axes.legend(frameon=False)
    return figure


def _draw(
    axes: Axes, lines: Sequence[Mapping[str, Any]], name: str, word: str, colour: str
) -> None:
    """One metric: its values faint, their running mean strong, held-out values as circles."""
    steps, values = _series(lines, name)
    if not values.size:
        return
    window = max(1, len(values) // 20)
    axes.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
    smooth = np.convolve(values, np.full(window, 1 / window), mode="valid")
    centre = (window - 1) // 2
    axes.plot(steps[centre:][: len(smooth)], smooth, color=colour, linewidth=1.8, label=word)
    held_out = _series(lines, f"eval/{name}")
    if held_out[0].size:
        axes.plot(
            *held_out, "o--", color=colour, markerfacecolor="white", label=f"{word}, held out"
        )


def _series(lines: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a metric, [n] each, where it is finite."""
    points = [(x["step"], x[name]) for x in lines if name in x and math.isfinite(x[name])]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.asarray(steps, float), np.asarray(values, float)


def _figure(panels: int) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(4.2 * min(panels, 2), 3.1 * math.ceil(panels / 2)), layout="constrained"
    )
    for number in range(panels):
        axes = figure.add_subplot(math.ceil(panels / 2), min(panels, 2), number + 1)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
    return figure
