"""An inspection in a terminal; marks say what the colors do, for readers without colors."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..data.examples import RowCounts
from ..data.inspection import (
    Column,
    Inspection,
    Lengths,
    Packing,
    Piece,
    Repeats,
    RowInspection,
    Shown,
    Source,
)
from ..report.text import visible

NEWLINE = "\n"
BARS = " ▁▂▃▄▅▆▇█"
LEGEND = "⟦scored tokens◆stop token⟧ context"
COLORS = {"context": "cyan", "scored": "green", "stop": "bold magenta"}
NAMES = {"longest": "prompt + response", "whole": "whole example"}
"""Lengths of several texts together."""


def terminal(found: Inspection) -> Group:
    """An inspection, to print with a `rich` console."""
    parts: list[RenderableType] = [
        *(_source(source, found.layout) for source in found.sources),
        _lengths(found),
        _packing(found.packing),
        Group(
            _repeats("examples", found.same_example),
            _repeats("prompts", found.same_prompt),
            _stops(found),
        ),
    ]
    spaced = [line for part in parts for line in (part, Text())]
    return Group(*spaced, *_examples(found.examples))


def _source(source: Source, layout: str) -> Group:
    """A data set: its columns, and what became of its rows."""
    said = f"{source.path}: {layout}, {source.epoch:,} examples an epoch"
    return Group(Text(visible(said), "bold"), _columns(source.columns), _counts(source.counts))


def row_terminal(found: RowInspection) -> Group:
    """The inspection of a row, to print with a `rich` console."""
    raw = json.dumps(found.raw, indent=1, ensure_ascii=False, default=str)
    parts: list[RenderableType] = [
        Text(f"{visible(found.where)}: {found.layout}", "bold"),
        Text(visible(raw, keep=NEWLINE)),
        _columns(found.columns),
    ]
    if found.counts is not None:
        parts.append(_counts(found.counts))
    if found.refused is not None:
        parts.append(Text(f"refused: {visible(found.refused)}", "red"))
    return Group(*parts, *_examples(found.examples))


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> Table:
    """A table whose first `left` columns are aligned on the left."""
    table = Table(box=None, pad_edge=False)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    return table


def _columns(columns: Sequence[Column]) -> Table:
    rows = [(c.name, c.kind, _use(c)) for c in columns]
    return _table(("column", "first value", ""), rows, left=3)


def _use(column: Column) -> str:
    if column.read_as is None:
        return "ignored"
    return "read" if column.read_as == column.name else f"read as {column.read_as}"


def _counts(counts: RowCounts) -> Table:
    heading, *rows = counts.table()
    placed = [(what, n, counts.first.get(what.removeprefix("dropped: "), "")) for what, n in rows]
    table = _table((*heading, "the first"), placed, left=1)
    table.columns[-1].justify = "left"
    return table


def _lengths(found: Inspection) -> Table:
    rows = [(NAMES.get(n, n), *_quantiles(values)) for n, values in found.lengths.items()]
    headings = ("length, tokens", "min", "50 %", "90 %", "99 %", "max", "from 0 to max")
    return _table(headings, rows, left=1)


def _quantiles(found: Lengths) -> tuple[str, ...]:
    most = max(found.histogram)
    # Any example shows: a bin is blank only if it is empty.
    heights = [-(-n * (len(BARS) - 1) // most) for n in found.histogram]
    shown = (found.min, found.p50, found.p90, found.p99, found.max)
    return (*(f"{n:,}" for n in shown), "".join(BARS[h] for h in heights))


def _packing(found: Packing) -> Group:
    rows = [
        ("a prompt for each response, padded to the longest", f"{found.padded:,}"),
        ("a prompt for each response, not padded", f"{found.unshared:,}"),
        ("shared prompts, not padded", f"{found.tokens:,}"),
        ("shared prompts in packed rows", f"{found.slots:,}"),
    ]
    batches = f"batches of {found.batch_size:,}, rows up to {found.row_length:,}"
    said = (
        f"{found.times:.1f}x fewer tokens than padded; rows {found.filled:.0%} full; shared "
        f"prompts save {found.shared:.0%}"
    )
    return Group(_table((batches, f"tokens of {found.batches:,}"), rows, left=1), Text(said))


def _repeats(what: str, found: Repeats) -> Text:
    said = f"{what}: {found.distinct:,} distinct, {found.count:,} repeat an earlier one"
    if found.first is not None:
        said += f"; the first is {found.first}, of {found.of}"
    return Text(visible(said))


def _stops(found: Inspection) -> Text:
    named = ", ".join(f"{token} ({i})" for token, i in found.stop_tokens.items())
    return Text(
        visible(f"stop tokens: {named}; {found.stopped:,} responses end with one")
        + f", {found.not_stopped:,} do not"
    )


def _examples(examples: Sequence[Shown]) -> list[Text]:
    """Examples, each a heading, its prompt and its responses."""
    shown = [Text(LEGEND, "dim")] if examples else []
    for example in examples:
        values = {"weight": example.weight} if example.weight != 1 else {}
        said = "".join(f", {name} {value}" for name, value in (values | example.columns).items())
        shown.append(Text(visible(f"{example.where}{said}"), "bold"))
        shown.append(_labeled("prompt", [Piece(example.prompt, "context")]))
        shown += [_labeled(response.name, response.pieces) for response in example.responses]
    return shown


def _labeled(name: str, pieces: Sequence[Piece]) -> Text:
    """The pieces of a text after its name, runs of scored tokens in ⟦ ⟧."""
    text = Text(f"{visible(name)}: ", "bold")
    for is_scored, run in itertools.groupby(pieces, lambda piece: piece.kind != "context"):
        said = Text("⟦" if is_scored else "", "green")
        for piece in run:
            mark = "◆" if piece.kind == "stop" else ""
            said.append(f"{mark}{visible(piece.text, keep=NEWLINE)}", COLORS[piece.kind])
        text = Text.assemble(text, said, ("⟧" if is_scored else "", "green"))
    return text
