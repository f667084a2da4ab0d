"""The two exceptions of jaxalign: a mistake of the user, and a failed run."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something in what the user gave is wrong.

    The message says where, what, got, wanted and what to do. The command line prints it without
    a traceback and exits with code 2.
    """


def near_miss(name: str, known: Iterable[str]) -> str:
    """'did you mean ...?' when a known name is close, else the list of known names."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"


class RunError(RuntimeError):
    """A run cannot go on, through no mistake in what the user gave: a full disk, a loss of NaN.

    The command line prints it without a traceback and exits with code 1.
    """
