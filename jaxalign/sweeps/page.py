"""The page of a sweep: its table, a figure for each metric, and its runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..files import write_whole
from ..report import figures, html
from ..report.samples import Estimate
from ..report.text import seconds
from .grid import short_names
from .table import Row, Sweep, cells

PICTURES = 8
"""Metrics that have a figure; the table has all."""


def write_page(sweep: Sweep) -> Path:
    """Write `sweep.html`, with its figures in it, to the folder of a sweep; returns its path."""
    rows, names = sweep.rows(), sweep.metrics()
    paths = list(rows[0].values)
    parts = [
        html.heading(1, f"Sweep: {sweep.folder.name}"),
        html.paragraph("Means over runs, ± one standard error, of metrics on held-out data."),
        html.table(
            (*paths, "runs", *names), [cells(row, paths, names) for row in rows], "numbers wide"
        ),
    ]
    if len(rows) > 1:
        drawn = {_file_name(name): _figure(rows, paths, name) for name in names[:PICTURES]}
        parts.append(html.pictures(drawn))
    runs = [
        (run.name, run.problem or "finished", seconds(run.seconds), f"{run.name}/recipe.yaml")
        for run in sweep.runs
    ]
    parts += [html.heading(2, "Runs"), html.table(("run", "state", "time", "recipe"), runs, "")]
    path = sweep.folder / "sweep.html"
    write_whole(path, html.page(f"Sweep {sweep.folder.name}", "".join(parts)))
    return path


def _figure(rows: Sequence[Row], paths: Sequence[str], metric: str) -> bytes:
    """A metric over the first setting that varies; a line for each combination of the others."""
    (first, *others), short = paths, short_names(paths)
    values = [row.values[first] for row in rows]
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    words = None if numbers else list(dict.fromkeys(map(str, values)))
    lines: dict[str, tuple[list[float], list[Estimate]]] = {}
    for row in rows:
        if metric not in row.metrics:
            continue
        name = ", ".join(f"{short[path]} {row.values[path]}" for path in others)
        places, means = lines.setdefault(name, ([], []))
        value = row.values[first]
        places.append(float(value) if words is None else float(words.index(str(value))))
        means.append(row.metrics[metric])
    return figures.errors(lines, (short[first], metric), words)


def _file_name(name: str) -> str:
    return re.sub(r"\W+", "_", name)
