"""Values as short texts, for the page and the terminal."""

from __future__ import annotations

import math
from typing import Any

from ..shown import escaped

LONGEST = 4000  # characters of one text; a page of a million is of no use
ITEMS = 20  # of a setting that is a list


def visible(text: object, keep: str = "") -> str:
    """Escape control characters, which a page or a terminal would obey, and cut long texts.

    Args:
      text: any value; its `str` is shown.
      keep: control characters to leave, such as a line break.
    """
    full = str(text)
    shown = escaped(full[:LONGEST], keep)
    more = len(full) - LONGEST
    return shown if more <= 0 else f"{shown} … ({more:,} more characters)"


def short(value: float) -> str:
    """A number in about four digits."""
    return f"{value:,.0f}" if 1000 <= abs(value) < math.inf else f"{value:.4g}"


def seconds(value: float) -> str:
    """A duration: `0.4 s`, `61 s`, `12 min`, `3 h 05 min`."""
    if not math.isfinite(value):
        return str(value)
    if value < 120:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    minutes = round(value / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def setting(value: Any, depth: int = 3) -> str:
    """A value of a recipe in one line; YAML can nest values without end, so deep ones are cut."""
    if isinstance(value, dict | list) and depth == 0:
        return "…"
    if isinstance(value, dict):
        items = [(k, v) for k, v in value.items() if v is not None]
        texts = [f"{k} {setting(v, depth - 1)}" for k, v in items[:ITEMS]]
    elif isinstance(value, list):
        texts = [setting(v, depth - 1) for v in value[:ITEMS]]
    else:
        return f"{value:g}" if isinstance(value, float) else str(value)
    return ", ".join(texts + ["…"] * (len(value) > ITEMS))
