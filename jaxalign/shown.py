"""Values and names from outside as short, harmless texts, for messages, pages and terminals."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable

VALUE = 80  # characters of a value in a message
NAME = 60  # characters of one of several names
NAMES = 800  # characters of a list of names: those of all objectives fit
JOINERS = "\u200c\u200d"  # inside words and emoji: not printable by themselves, and harmless


def escaped(text: str, keep: str = "") -> str:
    """Escape control characters, which a page or a terminal would obey.

    Args:
      text: the text to show.
      keep: control characters to leave, such as a line break.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in JOINERS or c in keep else c.encode("unicode_escape").decode()
        for c in text
    )


def cut(text: str, most: int) -> str:
    """A text of at most `most` characters, cut in its middle if it is longer."""
    end = most // 4
    return text if len(text) <= most else f"{text[: most - end - 1]}…{text[-end:]}"


def shown(value: object, most: int = VALUE) -> str:
    """A value as Python writes it, in at most `most` characters, control characters escaped."""
    return cut(_SHORT.repr(value), most)


def shown_json(value: object, most: int = VALUE) -> str:
    """A value as JSON writes it, in at most `most` characters."""
    return cut(json.dumps(value, default=str, ensure_ascii=False), most)


def listed(names: Iterable[object], quote: str = "'", most: int = NAMES) -> str:
    """Names, as many as `most` characters have room for, and how many more there are."""
    found = list(names)
    parts: list[str] = []
    room = most
    for name in found:
        parts.append(f"{quote}{escaped(cut(str(name), NAME))}{quote}")
        room -= len(parts[-1]) + 2
        if room < 0 and len(parts) < len(found):
            return f"{', '.join(parts)} … ({len(found) - len(parts):,} more)"
    return ", ".join(parts) or "none"


class _Short(reprlib.Repr):
    """`repr` of the beginning of a value, so that its cost is bounded too."""

    def __init__(self):
        super().__init__()
        self.maxstring = self.maxother = 4 * VALUE
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = 20
        self.maxlevel = 6

    def repr_int(self, x: int, level: int) -> str:
        """An integer; Python writes none of more than 4,300 digits."""
        return repr(x) if x.bit_length() < 1000 else f"an integer of {x.bit_length():,} bits"


_SHORT = _Short()


def distinct_ending(own: tuple[str, ...], every: Iterable[tuple[str, ...]], least: int = 1) -> int:
    """How many of its last parts tell a name from all others.

    Args:
      own: the parts of the name.
      every: the parts of all names; those equal to `own` are left out.
      least: the least number of parts.
    """
    others = [other for other in every if other != own]
    counts = range(least, len(own) + 1)
    return next((n for n in counts if all(x[-n:] != own[-n:] for x in others)), len(own))
