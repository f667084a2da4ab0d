"""The two exceptions of jaxalign: a mistake of the user, and a failed run."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from .shown import NAME, cut, escaped, listed

LINE = 1200  # characters of a line of a message
LINES = 20


def message(text: str) -> str:
    """A message as it is printed: control characters escaped, its lines bounded.

    What it says of values from outside cannot flood a terminal, nor command it.
    """
    lines = [escaped(cut(line, LINE), keep="\t") for line in text.split("\n")]
    more = len(lines) - LINES
    # The last line is often the remedy.
    short = [*lines[: LINES - 1], f"… ({more:,} more lines)", lines[-1]]
    return "\n".join(lines if more <= 0 else short)


class UserError(ValueError):
    """Something in what the user gave is wrong.

    The message says where, what, got, wanted and what to do. The command line prints it without
    a traceback and exits with code 2.
    """

    def __init__(self, text: str):
        super().__init__(message(text))


class RunError(RuntimeError):
    """A run cannot go on, through no mistake in what the user gave: a full disk, a loss of NaN.

    The command line prints it without a traceback and exits with code 1.
    """

    def __init__(self, text: str):
        super().__init__(message(text))


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is close to a name, as a typing error is; None if none is."""
    if len(name) > NAME:
        return None
    return next(iter(difflib.get_close_matches(name, sorted(known), 1)), None)


def near_miss(name: str, known: Iterable[str]) -> str:
    """'did you mean ...?' when a known name is close, and in any case the list of known names."""
    known = sorted(known)
    near = nearest(name, known)
    return f"{f'did you mean {near!r}? ' if near else ''}known: {listed(known, quote='')}"


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Say of a write that fails what failed, and what to do.

    Args:
      path: the file or folder to write.

    Raises:
      RunError: the system refused; names the file and the reason.
    """
    try:
        yield
    except OSError as error:
        raise unwritten(path, error) from error


def unwritten(path: str | os.PathLike[str], error: Exception) -> RunError:
    """The error of a file or folder that could not be written.

    Args:
      path: the file or folder.
      error: what the system or a library said.
    """
    number = error.errno if isinstance(error, OSError) else None
    reason = os.strerror(number) if number else str(error).strip()
    closed = number in (errno.EACCES, errno.EPERM, errno.EROFS)
    remedy = "make it writable" if closed else "free space on its disk"
    return RunError(
        f"{Path(path)}: cannot be written ({reason}); {remedy}, or choose another folder, and run "
        "the same command again"
    )
