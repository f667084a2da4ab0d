"""The figures of a report, one small picture each, so that they fit a phone as well as a desk."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .samples import Comparison, Estimate
from .text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILLION = "#0072B2", "#D55E00"  # told apart by color-blind readers (Okabe and Ito)
OTHERS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GRAY = "#BBBBBB"
COLORS = {"chosen": BLUE, "rejected": VERMILLION, "response": BLUE}
PANELS = {  # file name: the label of the y axis, and the metrics drawn there (/: all that begin so)
    "loss": ("loss", "loss"),
    "rewards": ("reward, nats", "rewards/"),
    "accuracy": ("reward accuracy", "rewards/accuracies"),
    "margin": ("reward margin, nats", "rewards/margins"),
    "logps": ("log-probability, nats", "logps/"),
    "kl": ("KL of own answers, nats", "samples/kl"),
    "length": ("length of own answers, tokens", "samples/length"),
    "unfinished": ("own answers without an end", "samples/unfinished"),
    "repetition": ("repetition of own answers", "samples/repetition"),
    "learning_rate": ("learning rate", "learning_rate"),
    "grad_norm": ("gradient norm", "grad_norm"),
    "tokens": ("tokens per second", "time/tokens_per_second"),
}
LARGEST = 1e30  # a value beyond it is treated as not finite: axes cannot hold it


def curves(metrics: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """The metrics of a stage over its updates.

    Args:
      metrics: lines of its metrics.jsonl.

    Returns:
      {name of the panel: PNG} for the panels that have a finite value.
    """
    present = list(dict.fromkeys(name.removeprefix("eval/") for line in metrics for name in line))
    alone = {names for _, names in PANELS.values()}
    pictures = {}
    for panel, (label, wanted) in PANELS.items():
        group = [n for n in present if n.startswith(wanted) and n not in alone]
        names = group if wanted.endswith("/") else [n for n in present if n == wanted]
        figure = _panel(metrics, label, names[: len(OTHERS)])
        if figure is not None:
            pictures[panel] = _png(figure)
    return pictures


def answers(comparison: Comparison) -> dict[str, bytes]:
    """The true rewards before and after, as {name: PNG}; empty if they are unknown."""
    summary = comparison.summary()
    if summary is None:
        return {}
    before = [s.reward_before or 0.0 for s in comparison.samples]
    after = [s.reward_after or 0.0 for s in comparison.samples]
    histogram, axes = _figure()
    low, high = min(before + after), max(before + after)
    bins = np.linspace(low, high if high > low else low + 1.0, 11).tolist()
    axes.hist([before, after], bins, color=[BLUE, VERMILLION], label=["before", "after"])
    for mean, color in ((summary.before.mean, BLUE), (summary.after.mean, VERMILLION)):
        axes.axvline(mean, color=color, linestyle="--", linewidth=1.2)
    axes.set(xlabel="true reward (dashed: mean)", ylabel="answers")
    _legend(histogram, axes)
    wins, axes = _figure()
    signs = np.sign(np.subtract(after, before))
    counts = [int(np.sum(signs == sign)) for sign in (1, 0, -1)]
    bars = axes.bar(["better", "equal", "worse"], counts, color=[VERMILLION, GRAY, BLUE])
    axes.bar_label(bars)
    axes.set(xlabel="answer after, compared with before", ylabel="prompts")
    return {"answers_rewards": _png(histogram), "answers_wins": _png(wins)}


def errors(
    lines: Mapping[str, tuple[Sequence[float], Sequence[Estimate]]],
    labels: tuple[str, str],
    ticks: Sequence[str] | None,
) -> bytes:
    """Means with their standard errors, as a PNG.

    Args:
      lines: {its name: (places on the x axis [n], values [n])}.
      labels: (of the x axis, of the y axis).
      ticks: names of the places 0, 1, ...; none: the places are numbers, on a logarithmic scale
        where they are positive and the largest is at least 10 times the smallest.
    """
    figure, axes = _figure()
    colors = (BLUE, VERMILLION, *OTHERS)
    for i, (name, (places, values)) in enumerate(lines.items()):
        means = [value.mean for value in values]
        bars = [0.0 if math.isnan(value.error) else value.error for value in values]
        axes.errorbar(
            places, means, bars, fmt="o-", color=colors[i % len(colors)], capsize=3,
            label=_label(name),
        )  # fmt: skip
    every = [place for places, _ in lines.values() for place in places]
    if ticks is not None:
        axes.set_xticks(range(len(ticks)), [_label(tick) for tick in ticks])
    elif min(every) > 0 and max(every) >= 10 * min(every):
        axes.set_xscale("log")
    axes.set(xlabel=_label(labels[0]), ylabel=_label(labels[1]))
    if len(lines) > 1:
        _legend(figure, axes)
    return _png(figure)


def _panel(metrics: Sequence[Mapping[str, Any]], label: str, names: Sequence[str]) -> Figure | None:
    """Metrics in one set of axes; None if they have no finite value."""
    series = {n: (_series(metrics, n), _series(metrics, f"eval/{n}")) for n in names}
    series = {n: pair for n, pair in series.items() if pair[0][0].size or pair[1][0].size}
    if not series:
        return None
    figure, axes = _figure()
    others = iter(OTHERS)
    for name, (training, held_out) in series.items():
        word = name.rpartition("/")[2] if name.startswith(("rewards/", "logps/")) else "training"
        word = "training" if word in ("accuracies", "margins") else word
        word = "planned" if name == "learning_rate" else word
        color = BLUE if len(series) == 1 else COLORS.get(word) or next(others)
        _draw(axes, training, held_out, word, color)
    axes.set(xlabel="update", ylabel=label)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        _legend(figure, axes)
    return figure


def _draw(
    axes: Axes,
    training: Sequence[np.ndarray],
    held_out: Sequence[np.ndarray],
    word: str,
    color: str,
) -> None:
    """One metric: its values faint, their running mean strong, held-out values as circles."""
    word = _label(word)
    steps, values = training
    if values.size:
        window = 1 if word == "planned" else max(1, len(values) // 20)
        axes.plot(steps, values, ".-", color=color, alpha=0.25, linewidth=1, markersize=2)
        smooth = np.convolve(values, np.full(window, 1 / window), mode="valid")
        center = (window - 1) // 2
        axes.plot(steps[center:][: len(smooth)], smooth, color=color, linewidth=1.8, label=word)
    if held_out[0].size:
        name = "held out" if word == "training" else f"{word}, held out"
        axes.plot(*held_out, "o--", color=color, markerfacecolor="white", label=name)


def _label(name: str) -> str:
    """A name as a short label, in which no formula is read."""
    return visible(name)[:24].replace("$", r"\$")


def _series(metrics: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a metric, [n] each, where it is finite."""
    points = [(x["step"], x[name]) for x in metrics if abs(x.get(name, math.nan)) < LARGEST]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.asarray(steps, float), np.asarray(values, float)


def _figure() -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 3.1), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.locator_params(axis="x", nbins=6)
    return figure, axes


def _legend(figure: Figure, axes: Axes) -> None:
    """A legend above the axes, where it covers no curve."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2,
                  frameon=False, fontsize="small")  # fmt: skip


def _png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    return picture.getvalue()


def win_rates(rates: Mapping[str, Sequence[tuple[float, float, float]]]) -> bytes:
    """Win rates against a baseline with their intervals, as a PNG.

    Args:
      rates: {name of the model: (rate, low, high) of each kind: plain, at equal length}; a rate
        that is not finite is left out.
    """
    figure, axes = _figure()
    places = range(len(rates))
    kinds = (("win rate", BLUE, -0.1), ("at equal length", VERMILLION, 0.1))
    for i, (label, color, offset) in enumerate(kinds):
        points = [(at + offset, *of_model[i]) for at, of_model in enumerate(rates.values())]
        points = [point for point in points if math.isfinite(point[1])]
        for at, rate, low, high in points:
            axes.plot([low, high], [at, at], color=color, linewidth=1.8)
            axes.plot([rate], [at], "o", color=color)
        if points:
            axes.plot([], [], "o-", color=color, label=label)
    axes.axvline(0.5, color=GRAY, linestyle="--", linewidth=1.2)
    axes.set(xlabel="win rate against the baseline, 95 % interval", xlim=(0, 1))
    axes.set_yticks(places, [_label(name) for name in rates])
    axes.set_ylim(len(rates) - 0.5, -0.5)
    _legend(figure, axes)
    return _png(figure)


def scores_by_divergence(points: Mapping[str, Sequence[tuple[float, float]]]) -> bytes:
    """Scores of models against their KL divergence from the reference, as a PNG.

    Args:
      points: {name of the model: ((KL, its standard error), (score, its standard error))}.
    """
    figure, axes = _figure()
    colors = (BLUE, VERMILLION, *OTHERS)
    for i, (name, ((kl, kl_error), (score, error))) in enumerate(points.items()):
        color = colors[i % len(colors)]
        axes.plot([kl - kl_error, kl + kl_error], [score, score], color=color)
        axes.plot([kl, kl], [score - error, score + error], color=color)
        axes.plot([kl], [score], "o", color=color, label=_label(name))
    axes.set(xlabel="KL to the reference, nats an answer", ylabel="score of an answer")
    _legend(figure, axes)
    return _png(figure)
