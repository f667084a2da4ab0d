"""The report of a run in a terminal."""

from __future__ import annotations

import math
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .read import Run, Stage, read_run
from .samples import SHOWN, Comparison
from .text import seconds, short, visible


def terminal(folder: Path) -> Group:
    """The report of a run, to print with a `rich` console.

    Raises:
      UserError: the folder holds no run.
    """
    run = read_run(Path(folder))
    parts: list[RenderableType] = [Text(f"{visible(run.folder)}: {visible(run.state)}", "bold")]
    warnings = [f"{stage.name}: {warning}" for stage in run.stages for warning in stage.warnings]
    parts += [Text(visible(said), "yellow") for said in (*run.problems, *warnings)]
    if run.stages:
        parts.append(_stages(run))
        parts += [Text(f"{visible(s.name)}: {visible(s.choice)}") for s in run.stages if s.choice]
    if run.made:
        parts.append(_made(run))
    if run.comparison is not None:
        parts += [_scores(run, run.comparison), _samples(run.comparison)]
    else:
        parts += [_held_out(stage) for stage in run.stages if stage.held_out][-1:]
    parts += [_times(stage) for stage in run.stages if stage.timings]
    if run.model is not None:
        name = "aligned checkpoint" if run.state == "finished" else "newest checkpoint"
        parts.append(Text(f"{name}: {visible(run.model)}"))
    return Group(*parts)


def titled_table(title: str, *columns: str) -> Table:
    """A table without rows, its title on the left.

    Args:
      title: the title.
      columns: the headings.
    """
    table = Table(title=Text(visible(title)), title_justify="left")
    for column in columns:
        table.add_column(Text(visible(column)), overflow="fold")
    return table


def add_row(table: Table, *cells: str) -> None:
    """Add a row of plain texts to a table."""
    table.add_row(*(Text(visible(cell, keep="\n")) for cell in cells))


def _stages(run: Run) -> Table:
    """One row for each stage: updates, and the loss at the start and now."""
    table = titled_table("stages", "stage", "updates", "loss", "accuracy", "tok/s", "time")
    for stage in run.stages:
        total = "" if stage.updates is None else f"/{stage.updates:,}"
        spent = sum(stage.timings.values())
        rate = stage.tokens_per_second
        add_row(
            table,
            stage.name,
            f"{stage.done:,}{total}" if stage.metrics else "",
            _first_and_last(stage, "loss"),
            _first_and_last(stage, "rewards/accuracies"),
            "" if rate is None else short(rate),
            seconds(spent) if spent else "",
        )
    return table


def _made(run: Run) -> Table:
    """One row for each stage that makes data."""
    table = titled_table("data made", "stage", "kind", "result")
    for made in run.made:
        add_row(table, made.name, made.kind, made.words() if made.finished else "unfinished")
    return table


def _first_and_last(stage: Stage, name: str) -> str:
    values = [line[name] for line in stage.metrics if name in line]
    return f"{short(values[0])} → {short(values[-1])}" if values else ""


def _held_out(stage: Stage) -> Table:
    count = stage.held_out_examples
    examples = "" if count is None else f", {count:,} examples"
    table = titled_table(
        f"{stage.name}: held-out data{examples}", "metric", "value", "standard error"
    )
    for name, value in stage.held_out.items():
        error = "" if math.isnan(value.error) else short(value.error)
        add_row(table, name, short(value.mean), error)
    return table


def _scores(run: Run, comparison: Comparison) -> Table:
    title = f"{run.folder}: {comparison.before} (before) and {comparison.after} (after)"
    table = titled_table(title, "", "before", "after", "change")
    for row in comparison.rows():
        add_row(table, row.name, row.before, row.after, row.change)
    return table


def _samples(comparison: Comparison) -> Table:
    shown = comparison.samples[:SHOWN]
    rewards = any(sample.rewards for sample in shown)
    columns = ("prompt", "before", "after", *(("reward",) if rewards else ()))
    table = titled_table(f"first {len(shown)} held-out prompts, one sample each", *columns)
    for s in shown:
        add_row(table, s.prompt, s.before, s.after, *((s.rewards,) if rewards else ()))
    return table


def _times(stage: Stage) -> Text:
    spent = ", ".join(f"{visible(name)} {seconds(s)}" for name, s in stage.timings.items())
    return Text(f"time of {visible(stage.name)}: {spent}")
