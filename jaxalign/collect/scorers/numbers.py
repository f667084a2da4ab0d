"""The numbers in a text, exactly."""

from __future__ import annotations

import re
from fractions import Fraction

DIGITS = 300
"""The most characters of a number; a longer one is none."""
NUMBER = re.compile(
    r"(?<![a-z0-9])(?<![0-9]\.)(?P<sign>[-+\u2212]?)[$\u20ac\u00a3]?(?P<inner>[-\u2212]?)(?:"
    r"(?<!/)(?:(?P<whole>[0-9]+) )?(?P<over>[0-9]+)/(?P<under>0*[1-9][0-9]*)(?![0-9/]|\.[0-9])"
    r"|(?P<number>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<!\.)\.[0-9]+)"
    r"(?:e(?P<power>[-+]?[0-9]{1,3})(?![0-9]))?)",
    re.ASCII | re.IGNORECASE,
)
"""A number: 1,234, -0.5, $3, 1/2, 1 1/2, 2e-3. A sign after a digit or a letter is none."""
FRACTION = re.compile(r"(?P<before>[0-9])?\s?\\[dt]?frac\{([0-9]+)\}\{([0-9]+)\}")
GOLD = "####"
"""What precedes the number of a solution in GSM8K."""


def numbers(text: str) -> list[Fraction | None]:
    r"""The numbers of a text in their order; None for a number with more than 300 characters.

    A percent sign is a unit: 50% is 50. LaTeX's \frac{1}{2}, 1{,}234 and \$ are read too.
    """
    text = text.replace("{,}", ",").replace("\\$", "$")
    text = FRACTION.sub(lambda m: f"{m[1] + ' ' if m[1] else ''}{m[2]}/{m[3]}", text)
    return [_value(match) for match in NUMBER.finditer(text)]


def _value(match: re.Match[str]) -> Fraction | None:
    if len(match[0]) > DIGITS:
        return None
    if match["over"]:
        found = Fraction(int(match["over"]), int(match["under"])) + int(match["whole"] or 0)
    else:
        found = Fraction(match["number"].replace(",", ""))
        found *= Fraction(10) ** int(match["power"] or 0)
    negative = (match["sign"] in ("-", "\u2212")) != (match["inner"] != "")
    return -found if negative else found


def answer_number(text: str, after: str | None = None) -> Fraction | None:
    """The number that an answer gives; None: it gives none.

    Args:
      text: the answer.
      after: text before the number, whose last place counts; None: the last number is read.
    """
    if after is None:
        return next(reversed(numbers(text)), None)
    _, marker, tail = text.rpartition(after)
    return next(iter(numbers(tail)), None) if marker else None


def whole_number_text(text: str) -> Fraction | None:
    """The number that a text is, with its unit sign; the number after #### of a solution.

    None if the text has no number, or several of them.
    """
    if GOLD in text:
        return answer_number(text, GOLD)
    found = numbers(text)
    return found[0] if len(found) == 1 else None
