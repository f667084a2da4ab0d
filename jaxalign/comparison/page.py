"""A comparison in the terminal, as a page, and as files for other programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType

from ..files import first_process, whole_file
from ..report import figures, html
from ..report.terminal import add_row, titled_table
from ..report.text import setting, short
from .measures import Measured, Rate
from .result import MEASURES, Compared, PairResult, Shown

HEAD = ("model", "win rate", "at equal length", "length effect", "score - baseline's")


def write_files(found: Compared, out: Path) -> Path:
    """Write `comparison.json`, `comparison.csv` and `comparison.html`.

    Args:
      found: the comparison.
      out: the folder.

    Returns:
      The path of the page.

    Raises:
      RunError: a file cannot be written.
    """
    page = out / "comparison.html"
    if first_process():
        texts = {
            "comparison.json": json.dumps(found.to_json(), indent=1, allow_nan=False) + "\n",
            "comparison.csv": found.to_csv(),
            page.name: _page(found),
        }
        for name, text in texts.items():
            with whole_file(out / name) as file:
                file.write(text.encode())
    return page


def terminal(found: Compared) -> Group:
    """A comparison as two tables, to print with a `rich` console."""
    measured = titled_table(_measured_title(found), "", *(model.name for model in found.models))
    for row in _measured_rows(found):
        add_row(measured, *row)
    won = titled_table(f"against {found.models[0].name}; 95 % intervals", *HEAD)
    for pair in found.pairs:
        add_row(won, *_pair_row(pair))
    parts: list[RenderableType] = [measured, won]
    return Group(*parts)


def _measured_title(found: Compared) -> str:
    each = f"{found.answers} answers" if found.answers > 1 else "1 answer"
    return f"{found.prompts:,} prompts, {each} to each; ± is one standard error"


def _measured_rows(found: Compared) -> list[tuple[str, ...]]:
    """A row for each measure: its words, and its value for each model."""
    return [
        (MEASURES[name], *(_measured(model.measures[name]) for model in found.models))
        for name in found.models[0].measures
    ]


def _measured(value: Measured) -> str:
    if math.isnan(value.mean):
        return "none"
    return short(value.mean) + ("" if math.isnan(value.error) else f" ± {value.error:.2g}")


def _pair_row(pair: PairResult) -> tuple[str, ...]:
    rates = (_rate(pair.win_rate), _rate(pair.controlled.rate))
    effect = pair.controlled.length_effect
    return (
        pair.name,
        *rates,
        "none" if math.isnan(effect) else f"{effect:+.2f}",
        _measured(pair.difference),
    )


def _rate(rate: Rate) -> str:
    if math.isnan(rate.value):
        return "none"
    return f"{rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}]"


def _page(found: Compared) -> str:
    """The page, which needs no other file."""
    baseline = found.models[0].name
    parts = [
        html.heading(1, "Comparison of models"),
        html.paragraph(f"{_measured_title(found)}. The baseline is {baseline}.", "note"),
        html.heading(2, "Win rates"),
        html.table(HEAD, map(_pair_row, found.pairs), "numbers wide"),
        html.paragraph(
            "A tie is half a win. Intervals have 95 %. At equal length: the win rate that the "
            "model would have with answers as long as the baseline's. A length effect over 0 "
            "means that longer answers win more often.",
            "note",
        ),
        html.pictures(_figures(found)),
        html.heading(2, "Measures"),
        html.table(
            ("", *(model.name for model in found.models)), _measured_rows(found), "numbers wide"
        ),
        html.heading(2, "Answers"),
        *(_answers(shown, [model.name for model in found.models]) for shown in found.shown),
        html.paragraph(
            f"The first {len(found.shown)} prompts, the first answer of each, not selected.", "note"
        ),
        html.heading(2, "Settings"),
        html.table((), _settings(found.settings), "settings"),
        html.heading(2, "Models"),
        html.table((), ((model.name, model.path) for model in found.models), "settings"),
    ]
    return html.page("Comparison of models", "".join(parts))


def _figures(found: Compared) -> dict[str, bytes]:
    rates = {p.name: (p.win_rate, p.controlled.rate) for p in found.pairs}
    drawn = {"win rates": figures.win_rates(rates)}
    if "kl" in found.models[0].measures:
        points = {
            model.name: [model.measures[name].estimate for name in ("kl", "score")]
            for model in found.models
        }
        drawn["score and KL divergence"] = figures.scores_by_divergence(points)
    return drawn


def _answers(shown: Shown, names: Sequence[str]) -> str:
    """A prompt with the first answer of every model."""
    parts = [html.element("div", html.text(shown.prompt, keep="\n\t"), "prompt text")]
    for name, (answer, score) in zip(names, shown.answers, strict=True):
        label = html.element("div", html.text(f"{name}, score {short(score)}"), "label")
        text = html.element("div", html.text(answer, keep="\n\t"), "text")
        parts.append(html.element("div", label + text))
    return html.element("div", "".join(parts), "sample")


def _settings(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, setting(value)) for name, value in settings.items() if value is not None]
