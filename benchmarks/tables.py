"""Tables in Markdown, and where a benchmark writes them. Standard library alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first of them the heading, as a Markdown table."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    head, *body = (
        "| " + " | ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    )
    rule = "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|"
    return "\n".join([head, rule, *body])


def publish(name: str, text: str, write: bool) -> None:
    """Print a benchmark's result, and write it to `results/NAME.md` if asked to."""
    print(text)
    if write:
        (RESULTS / f"{name}.md").write_text(text + "\n", encoding="utf-8")
