"""The results of a sweep: one line for each run, and the mean over seeds with its error."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ..files import write_whole
from ..report.samples import Estimate
from ..report.terminal import add_row, titled_table
from .grid import SEED, short_names

FIRST = ("true reward", "win rate", "rewards/accuracies", "rewards/margins", "loss")
"""Metrics that a table shows first; of a term, those that end so."""
COLUMNS = 4
"""Metrics in the table of a terminal; the file has all."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a run of a sweep."""

    name: str
    """Its folder in the folder of the sweep."""
    values: Mapping[str, Any]
    """The settings that vary, by dotted path."""
    problem: str
    """Why it failed, in words; "": it is finished."""
    metrics: Mapping[str, float]
    """Held-out metrics of its last stage that trains; in a small world also the true reward of its
    answers, and the share of prompts for which they are better than before."""
    seconds: float
    """Time that this call spent on it."""

    def line(self) -> str:
        """The result in one line."""
        if self.problem:
            return f"{self.name} failed: {self.problem}"
        found = [f"{name} {self.metrics[name]:.4g}" for name in first_metrics(self.metrics)]
        return f"{self.name}: {', '.join(found) or 'finished'}"


@dataclasses.dataclass(frozen=True)
class Row:
    """The runs that differ in their seeds alone."""

    values: Mapping[str, Any]
    """The settings that vary, without the seed."""
    runs: int
    """How many are finished."""
    failed: int
    metrics: Mapping[str, Estimate]
    """Means over the runs that are finished, each with its standard error; nan for one run."""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The results of a sweep."""

    folder: Path
    runs: tuple[Outcome, ...]

    def rows(self) -> list[Row]:
        """The means over seeds, one row for each combination of the other settings."""
        found: list[list[Outcome]] = []
        for run in self.runs:
            same = next((g for g in found if _seedless(g[0]) == _seedless(run)), None)
            if same is None:
                found.append([run])
            else:
                same.append(run)
        return [_row(group) for group in found]

    def metrics(self) -> list[str]:
        """The names of all metrics, the ones that a reader asks for first at the front."""
        return ordered(dict.fromkeys(name for run in self.runs for name in run.metrics))

    def terminal(self) -> Table:
        """The rows as a table for the terminal."""
        shown = first_metrics(self.metrics())
        title = f"{self.folder}: mean over runs, ± one standard error"
        rows = self.rows()
        paths = list(rows[0].values)
        table = titled_table(title, *short_names(paths).values(), "runs", *shown)
        for row in rows:
            add_row(table, *cells(row, paths, shown))
        return table


def ordered(names: Iterable[str]) -> list[str]:
    """Names of metrics, the ones that a reader asks for first at the front."""
    return sorted(names, key=_place)


def first_metrics(names: Iterable[str]) -> list[str]:
    """The metrics that a reader asks for first, as many as fit a terminal; else any."""
    found = ordered(names)
    return ([name for name in found if _place(name) < len(FIRST)] or found)[:COLUMNS]


def _place(name: str) -> int:
    ends = [i for i, first in enumerate(FIRST) if name == first or name.endswith(f"/{first}")]
    return ends[0] if ends else len(FIRST)


def cells(row: Row, paths: Sequence[str], metrics: Sequence[str]) -> list[str]:
    """A row as text: its values, how many runs, its metrics."""
    count = f"{row.runs}, {row.failed} failed" if row.failed else str(row.runs)
    found = [str(row.metrics[name]) if name in row.metrics else "" for name in metrics]
    return [*(str(row.values[path]) for path in paths), count, *found]


def write_csv(path: Path, runs: Sequence[Outcome]) -> None:
    """Write one line for each run: its name, its values, its problem, seconds, all metrics."""
    names = list(dict.fromkeys(name for run in runs for name in run.metrics))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", *runs[0].values, "problem", "seconds", *names])
    for run in runs:
        values = [run.metrics.get(name, "") for name in names]
        writer.writerow(
            [run.name, *run.values.values(), run.problem, f"{run.seconds:.1f}", *values]
        )
    write_whole(path, text.getvalue())


def _seedless(run: Outcome) -> dict[str, Any]:
    return {path: value for path, value in run.values.items() if path != SEED}


def _row(group: Sequence[Outcome]) -> Row:
    finished = [run for run in group if not run.problem]
    names = dict.fromkeys(name for run in finished for name in run.metrics)
    metrics = {
        name: Estimate.of([run.metrics[name] for run in finished if name in run.metrics])
        for name in names
    }
    return Row(_seedless(group[0]), len(finished), len(group) - len(finished), metrics)
