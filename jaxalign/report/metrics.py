"""The lines of a metrics.jsonl, read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..documents import from_json
from ..errors import UserError
from ..shown import shown


def parse_line(line: str) -> dict[str, Any] | None:
    """A line of a metrics.jsonl: `step` an int, everything else a float; None if it is damaged."""
    try:
        values = from_json(line, finite=False)
        step = int(values.pop("step"))
        return {"step": step} | {name: float(value) for name, value in values.items()}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, as `parse_line` gives them.

    The last line is left out if a kill cut it short.

    Raises:
      UserError: another line is damaged.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    records = []
    for number, line in enumerate(lines, 1):
        record = parse_line(line)
        if record is not None:
            records.append(record)
        elif number < len(lines):
            raise UserError(
                f"{path} line {number}: got {shown(line)}, wanted a JSON object of numbers "
                "with a 'step'; remove the line"
            )
    return records
