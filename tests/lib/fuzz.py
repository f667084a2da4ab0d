"""The limits of a fuzz case: time, memory, and one readable message for a refusal."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings

from jaxalign.errors import RunError, UserError

CASES = int(os.environ.get("JAXALIGN_FUZZ_CASES", "0"))
"""Cases of all targets together; 0: the few of a run of the tests, the same ones every time."""
FEW = 200
SECONDS = 5
"""Seconds of the processor."""
HANG = 60
"""Seconds of the clock, with other work on the machine."""
GIB = 1.0
"""Memory of a case above that of the process before it, which takes less than another 1 GiB."""
LONGEST = 4000
"""Characters of a message."""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def fuzz(share: float) -> settings:
    """The settings of a target that gets a share of all cases."""
    few = CASES == 0
    return settings(
        max_examples=max(int((FEW if few else CASES) * share), 1),
        deadline=None,  # `limited` has its own, which also ends a case that hangs
        suppress_health_check=list(HealthCheck),
        derandomize=few,
        phases=(Phase.explicit, Phase.generate) if few else tuple(Phase),
        report_multiple_bugs=not few,
        print_blob=True,
    )


class Hang(BaseException):
    """A case took too long; no `except Exception` of the program may hide it."""


@contextlib.contextmanager
def limited() -> Iterator[list[str]]:
    """Run a case within the limits; gives a list that gets the message if the case is refused.

    Everything but a `UserError` or a `RunError` passes through, and so fails the test.
    """
    refused: list[str] = []
    with _in_time():
        before = _memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts again
        try:
            yield refused
        except (UserError, RunError) as error:
            refused.append(str(error))
        grown = _memory("VmHWM") - before
    assert grown < GIB, f"{grown:.2f} GiB"
    for message in refused:
        assert message.strip(), "an empty message"
        assert len(message) < LONGEST, message[:200]
        assert not CONTROL.search(message), repr(message)
        assert "Traceback" not in message


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    def ring(number: int, frame: Any) -> None:
        raise Hang(f"over {SECONDS} s of the processor or {HANG} s of the clock")

    timers = (
        (signal.SIGPROF, signal.ITIMER_PROF, SECONDS),
        (signal.SIGALRM, signal.ITIMER_REAL, HANG),
    )
    before = [signal.signal(number, ring) for number, _, _ in timers]
    try:
        for _, timer, seconds in timers:
            signal.setitimer(timer, seconds)
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def _memory(name: str) -> float:
    """GiB of this process, now or at most."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(rf"{name}:\s+(\d+)", status)[1]) / 2**20
