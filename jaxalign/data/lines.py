"""Lines and entries of data files, none of which is read further than a bound."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from ..documents import JsonReader, leaves, too_deep
from ..errors import UserError

LONGEST = 2**26
"""The most bytes of a line and characters of a text, where no setting says so."""
WHITE = re.compile(r"[ \t\r\n]*")
LEAST = 2**16
"""Characters read at once."""


def lines(stream: Any, most: int, where: str) -> Iterator[Any]:
    """The lines of a stream of bytes or of text.

    Args:
      stream: the stream; it may be a compressed file.
      most: the length of the longest line.
      where: the name of the file, for messages.

    Raises:
      UserError: a line is longer.
    """
    for number in itertools.count(1):
        line = stream.readline(most + 1)
        if not line:
            return
        if len(line) > most:
            raise too_long(f"{where} line {number}", most)
        yield line


def too_long(where: str, most: int) -> UserError:
    """The error for a line or a text over the bound."""
    return UserError(
        f"{where}: is longer than {most:,} characters; shorten it, drop it, or raise data.max_line"
    )


def check_texts(record: Mapping[str, Any], most: int, where: str) -> None:
    """Refuse a text of a record that is longer than `most`.

    Raises:
      UserError: there is one; names its column.
    """
    for column, value in leaves(record):
        if isinstance(value, str | bytes) and len(value) > most:
            raise too_long(f"{where}: '{column}'", most)


def entries(stream: TextIO, most: int, where: str) -> Iterator[Any]:
    """The entries of a JSON list, each read when it is asked for.

    Numbers among the entries are not read whole; objects, of which data consist, are.

    Args:
      stream: the text of the list.
      most: the length of the longest entry.
      where: the name of the file, for messages.

    Raises:
      UserError: an entry is longer.
      ValueError: the text is no JSON list, or an entry is refused by `JsonReader`.
    """
    window = _Window(stream, most, where)
    window.take("[")
    if window.sign() != "]":
        yield window.value()
        while window.sign() == ",":
            window.take(",")
            yield window.value()
    window.take("]")
    if window.sign():
        raise ValueError("text follows its list")


class _Window:
    """The text of a stream from the entry that is read next."""

    def __init__(self, stream: TextIO, most: int, where: str):
        self._stream, self._most, self._where = stream, most, where
        self._text, self._at, self._number = "", 0, 0

    def sign(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            match = WHITE.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._grow():
                return ""

    def take(self, sign: str) -> None:
        """Go past a sign, which comes next."""
        if (found := self.sign()) != sign:
            got = repr(found) if found else "its end"
            raise ValueError(f"after entry {self._number} wanted {sign!r}, got {got}")
        self._at += 1

    def value(self) -> Any:
        """The next entry."""
        self._number += 1
        self.sign()
        while True:
            reader = JsonReader()
            try:
                found, end = reader.decoder.raw_decode(self._text, self._at)
            except RecursionError:
                raise too_deep() from None
            except json.JSONDecodeError:
                if len(self._text) - self._at > self._most:
                    raise too_long(f"{self._where} entry {self._number}", self._most) from None
                if not self._grow():
                    raise
                continue
            if end - self._at > self._most:
                raise too_long(f"{self._where} entry {self._number}", self._most)
            text = self._text[self._at : end]
            self._at = end
            return reader.checked(found, text)

    def _grow(self) -> bool:
        """Read as many characters as are held, so that all readings together stay linear."""
        held = self._text[self._at :]
        more = self._stream.read(max(LEAST, len(held)))
        self._text, self._at = held + more, 0
        return bool(more)
