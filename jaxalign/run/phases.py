"""The seconds that a stage spends in each phase, shown while it lasts and kept in timings.json."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

from ..errors import RunError, UserError
from ..files import read_json, write_whole

PHASES = (
    "making data",
    "reading data",
    "reference pass",
    "compiling",
    "training",
    "evaluating",
    "sampling",
    "saving",
    "exporting",
)
REPORTED = ("reference pass", "training", "evaluating", "sampling", "saving")


class Phases:
    """The clock of a stage: `with phases("saving"): ...`.

    Phases nest; a second counts only for the innermost open phase. Each phase that ends, also by
    an error, rewrites `folder/timings.json`, `{"reading data": 1.5, ...}` in seconds. A resumed
    stage adds to the seconds of the processes before it.

    Nothing is written before the stage has a folder: a stage whose data cannot be read has none.
    Outside of a tracker's live view a terminal shows the phase with a spinner. Without a terminal
    each phase prints one line, except those that print their own progress.

    Args:
      folder: the folder of the stage.
      stage: the name of the stage, for display.
      console: where to print.
    """

    def __init__(self, folder: Path, stage: str, console: Console):
        self.seconds = _read(folder / "timings.json")
        self.in_live_view = False  # a tracker shows `current` itself
        self._path = folder / "timings.json"
        self._stage, self._console = stage, console
        self._open: list[str] = []
        self._since = 0.0

    @property
    def current(self) -> str:
        """The innermost open phase; empty if there is none."""
        return self._open[-1] if self._open else ""

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the time inside the `with` block for the phase `name`, one of `PHASES`."""
        with self._shown(name):
            self._count()
            self._open.append(name)
            try:
                yield
            except BaseException:
                with contextlib.suppress(RunError):  # the error of the phase says more
                    self._end()
                raise
            self._end()

    def _end(self) -> None:
        self._count()
        self._open.pop()
        rounded = {n: round(self.seconds[n], 3) for n in PHASES if n in self.seconds}
        if self._path.parent.exists():
            write_whole(self._path, json.dumps(rounded, indent=1))

    def _count(self) -> None:
        now = time.monotonic()
        if self._open:
            name = self._open[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now

    def _shown(self, name: str) -> contextlib.AbstractContextManager[object]:
        text = Text(f"{self._stage}: {name}")
        if self._console.is_terminal:
            hidden = self.in_live_view or self._open
            return contextlib.nullcontext() if hidden else self._console.status(text)
        if name not in REPORTED:
            self._console.print(text, soft_wrap=True)
        return contextlib.nullcontext()


def _read(path: Path) -> dict[str, float]:
    """The seconds of earlier processes; a missing or damaged file counts as none."""
    try:
        found = read_json(path)
    except UserError:
        return {}
    return {n: float(found[n]) for n in PHASES if isinstance(found.get(n), int | float)}
