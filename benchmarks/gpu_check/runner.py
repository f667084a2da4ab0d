"""Run the parts of the check: each in a process with a time limit, all within one budget.

Parts that time nothing run side by side. A part with timings has the GPU alone, while the next one
already imports its modules. Uses only the standard library.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
LANES = 3  # parts side by side: more only wait for each other's compilers
SHARE = "0.92"  # GPU memory of a part that is alone; jax's default is three quarters


class Part(NamedTuple):
    """A part of the check."""

    name: str
    argv: tuple[str, ...]  # arguments of `python -m`
    limit: float  # seconds from its turn on
    alone: bool  # whether it must have the GPU to itself


class Outcome(NamedTuple):
    """How a part ended."""

    part: Part
    state: str  # done; failed, with its exit code; cut at its limit or the budget; left out
    seconds: float


class _Running:
    """The process of a part."""

    def __init__(self, part: Part, folder: Path):
        self.part = part
        self.began: float | None = None
        log = (folder / f"{part.name}.log").open("w")
        memory = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        if part.alone:
            memory = {"XLA_PYTHON_CLIENT_MEM_FRACTION": SHARE}
        cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "work" / "compiled")}
        with log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *part.argv],
                cwd=ROOT,
                env=memory | cache | {"PYTHONUNBUFFERED": "1"} | os.environ,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )

    def go(self) -> None:
        """Give the GPU to this part."""
        self.began = time.monotonic()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has failed already
            self._process.stdin.write(b"go\n")
            self._process.stdin.close()

    def ended(self, deadline: float) -> Outcome | None:
        """The outcome once the part has ended; kills it past its limit or the check's deadline."""
        assert self.began is not None
        now = time.monotonic()
        code = self._process.poll()
        if code is None and now < min(self.began + self.part.limit, deadline):
            return None
        self.kill()
        state = {None: "cut", 0: "done"}.get(code, f"failed ({code})")
        return Outcome(self.part, state, now - self.began)

    def kill(self) -> None:
        """End the process and everything it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def run(parts: Sequence[Part], folder: Path, budget: float) -> Iterator[Outcome]:
    """Run the parts in order until the budget, in seconds, is spent."""
    deadline = time.monotonic() + budget
    alive: list[_Running] = []
    waiting = list(parts)
    try:
        while waiting or alive:
            _begin(waiting, alive, folder)
            for process in [p for p in alive if p.began is not None]:
                if (outcome := process.ended(deadline)) is not None:
                    alive.remove(process)
                    yield outcome
            if time.monotonic() >= deadline:
                left_out = [p.part for p in alive if p.began is None] + waiting
                yield from (Outcome(part, "left out", 0.0) for part in left_out)
                return
            time.sleep(0.05)
    finally:
        for process in alive:
            process.kill()


def _begin(waiting: list[Part], alive: list[_Running], folder: Path) -> None:
    """Start the parts that may start now, in order; give the GPU to the part whose turn it is."""
    while waiting and not any(process.began is None for process in alive):
        part = waiting[0]
        if not part.alone and (len(alive) >= LANES or any(p.part.alone for p in alive)):
            break
        alive.append(_Running(waiting.pop(0), folder))
        if not part.alone:
            alive[-1].go()
    if len(alive) == 1 and alive[0].began is None:
        alive[0].go()
