"""The worker's end of the pipe to the race. Uses only the standard library.

The race writes `step` lines and reads a line of JSON for each: first its versions, then the figures
of each step. CPU seconds cover the whole process since its last answer, so that no thread works
unseen between two steps.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

Step = Callable[[], tuple[float, float]]
"""One update -> (loss, gradient norm before clipping); returns when all of it is done."""


class Pipe:
    """Answers on the original standard output; other prints go to the log."""

    def __init__(self):
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._cpu = self._wall = 0.0
        self.peak: Callable[[], float] = peak_mb
        """The most memory used, MB; of the device, where a side on a GPU says so."""

    def _send(self, **values: Any) -> None:
        print(json.dumps(values), file=self._out, flush=True)

    def missing(self, package: str | None) -> None:
        """Report that this interpreter lacks a package."""
        self._send(missing=package)

    def imported(self) -> None:
        """Report that everything is imported, and wait until the device is free."""
        self._send(imported=True)
        sys.stdin.readline()

    def ready(self, *packages: str) -> None:
        """Report that everything is loaded, with the versions."""
        found = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
        self._send(versions=found)
        self._cpu = cpu_seconds()

    def wait(self) -> bool:
        """Wait for the next step; False if there is none."""
        asked = sys.stdin.readline().strip() == "step"
        self._wall = time.perf_counter()
        return asked

    def done(self, loss: float, norm: float) -> None:
        """Report that the step is done, with its figures."""
        wall, cpu = time.perf_counter() - self._wall, cpu_seconds()
        self._send(loss=loss, norm=norm, wall=wall, cpu=cpu - self._cpu, peak=self.peak())
        self._cpu = cpu

    def serve(self, step: Step, *packages: str) -> None:
        """Answer until the race is over."""
        self.ready(*packages)
        while self.wait():
            self.done(*step())


def cpu_seconds() -> float:
    """User and system time of this process and of the children it has waited for."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)


def peak_mb() -> float:
    """Peak resident memory of this process, MB (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def run(side: Callable[[Pipe], None]) -> None:
    """A worker's `main`: `side` says when it has imported all and when it is ready, and serves."""
    pipe = Pipe()
    try:
        side(pipe)
    except ModuleNotFoundError as error:
        pipe.missing(error.name)
