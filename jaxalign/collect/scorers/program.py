"""A scorer that is a program: JSON lines to its standard input, one number a line from it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ...digests import sha256
from ...documents import from_json
from ...errors import RunError, UserError
from ...settings import score
from ...shown import cut, escaped, shown
from .answers import Answered, Scored

ANSWERS = ("responses", "chosen", "rejected", "completion", "prompt")
"""Columns of a row in whose place a program gets one prompt and one response."""
TAIL = 2000
"""The last bytes of a program's standard error that are kept."""
LONGEST = 2**16
"""The most bytes of a line of a program."""
EARLY = "wrote a line before it read its own; it must answer line by line"
LATE = "wrote more than one line for the line before"
LIMITED = (
    "import os, resource, sys; limit = int(sys.argv[1]); "
    "resource.setrlimit(resource.RLIMIT_AS, (limit, limit)); os.execvp(sys.argv[2], sys.argv[2:])"
)
"""A program that limits its memory and then becomes another; no code of ours runs in a fork."""


class AnswerError(Exception):
    """A program did not score an answer; says why."""


class Program:
    """A program that scores answers, started again after it hangs or ends."""

    def __init__(self, record: score.Program):
        """Find the program.

        Args:
          record: the settings.

        Raises:
          UserError: there is no such program.
        """
        found = shutil.which(record.command[0])
        if found is None:
            raise UserError(
                f"program.command: no program {shown(record.command[0])} here or on the PATH; "
                "check its name, or make it executable"
            )
        self._record, self._file = record, found
        self._failed = self._started = 0

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """The options, and the SHA-256 of the program and of the files among its arguments."""
        files = [Path(self._file), *map(Path, self._record.command[1:])]
        digests = [sha256(file) for file in files if file.is_file()]
        options = dataclasses.asdict(self._record)
        if self._record.failed is None:  # its bounds stop it, but change no score
            options |= {"timeout": None, "memory": None}
        return options | {"files": digests}

    def score(self, rows: Sequence[Answered]) -> Scored:
        """Score the answers of every row.

        Raises:
          RunError: the program fails on an answer, and no score of failures is given.
        """
        values: list[list[float]] = []
        running: _Running | None = None
        try:
            for row in rows:
                values.append([])
                for i in range(len(row.responses)):
                    if running is None:
                        running = _Running(self._record)
                        self._started += 1
                    try:
                        found = running.ask(_line(row, i))
                    except AnswerError as error:
                        found = self._failure(f"{row.where}: answer {i}", error, running.stop())
                        running = None
                    values[-1].append(found)
            if running is not None and (more := running.rest()):
                raise RunError(
                    f"program {self._record.command[0]}: wrote {shown(more)} after its last "
                    "number; let it write one line for each line that it reads"
                )
        finally:
            if running is not None:
                running.stop()
        return Scored(values)

    def _failure(self, where: str, error: AnswerError, stderr: str) -> float:
        self._failed += 1
        if self._record.failed is not None:
            return self._record.failed
        said = f"; its standard error ends with: {stderr}" if stderr else ""
        raise RunError(
            f"{where}: the program {self._record.command[0]} {error}{said}; fix the program, or "
            "give a score for such answers in `failed`"
        )

    def report(self) -> dict[str, float]:
        """Answers on which the program failed, and how often it was started."""
        return {"failed": self._failed, "started": self._started}


def _line(row: Answered, i: int) -> bytes:
    """The line of an answer: the row's columns, prompt and response, messages as they are."""
    others = {k: v for k, v in row.row.items() if k not in ANSWERS}
    line = others | {"prompt": row.prompt, "response": row.responses[i]}
    return json.dumps(line).encode() + b"\n"


class _Running:
    """A running program and its pipes."""

    def __init__(self, record: score.Program):
        command = list(record.command)
        if record.memory is not None:
            command = [sys.executable, "-c", LIMITED, str(record.memory * 2**20), *command]
        self._timeout = record.timeout
        # Its own session, so that its children end with it.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        self._stderr = b""
        self._reader = threading.Thread(target=self._drain, daemon=True)
        self._reader.start()
        for pipe in (self._in, self._out):
            os.set_blocking(pipe.fileno(), False)
        self._buffer = b""
        self._asked = False  # whether it has had a line

    @property
    def _in(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def _out(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def _drain(self) -> None:
        """Read standard error, so that a full pipe stops no program; the end is kept."""
        assert self._process.stderr is not None
        with contextlib.suppress(OSError, ValueError):
            while piece := self._process.stderr.read(4096):
                self._stderr = (self._stderr + piece)[-TAIL:]

    def ask(self, line: bytes) -> float:
        """The number for a line.

        Raises:
          AnswerError: there is none within the time, the program ended, or it wrote something else.
        """
        deadline = time.monotonic() + self._timeout
        self._read()
        if self._buffer:
            raise AnswerError(LATE if self._asked else EARLY)
        self._asked = True
        with selectors.DefaultSelector() as ready:
            ready.register(self._out, selectors.EVENT_READ)
            ready.register(self._in, selectors.EVENT_WRITE)
            while b"\n" not in self._buffer:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise AnswerError(f"gave no number within {self._timeout:g} seconds")
                for key, _ in ready.select(left):
                    if key.fileobj is self._in:
                        line = self._write(line)
                        if not line:
                            ready.unregister(self._in)
                    else:
                        self._read()
        if line:
            raise AnswerError(EARLY)
        answer, _, self._buffer = self._buffer.partition(b"\n")
        if self._buffer:
            raise AnswerError("wrote more than one line for a line")
        return _number(answer)

    def _write(self, line: bytes) -> bytes:
        """What is left of a line to write."""
        try:
            return line[os.write(self._in.fileno(), line[:LONGEST]) :]
        except BlockingIOError:
            return line
        except BrokenPipeError:
            return b""  # it may have answered before it closed its input; the read tells

    def _read(self) -> None:
        try:
            piece = os.read(self._out.fileno(), LONGEST)
        except BlockingIOError:
            return
        if not piece:
            self._process.wait()
            raise AnswerError(f"ended with exit code {self._process.returncode}")
        self._buffer += piece
        if len(self._buffer) > LONGEST:
            raise AnswerError(f"wrote a line of over {LONGEST:,} bytes")

    def rest(self) -> str:
        """What the program writes after its input ends."""
        self._in.close()
        os.set_blocking(self._out.fileno(), True)
        watch = threading.Timer(self._timeout, self._kill)
        watch.start()
        try:
            return self._out.read(LONGEST).decode(errors="replace")
        finally:
            watch.cancel()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def stop(self) -> str:
        """Kill the program and its children; the end of its standard error."""
        self._kill()
        self._process.wait()
        self._reader.join(timeout=1)
        for pipe in (self._in, self._out):
            pipe.close()
        text = self._stderr.decode(errors="replace").strip()
        return escaped(cut(text[-TAIL // 4 :], TAIL // 4))


def _number(line: bytes) -> float:
    text = line.decode(errors="replace").strip()
    try:
        found = from_json(text)
    except ValueError:
        found = None
    if isinstance(found, dict):
        found = found.get("score")
    if isinstance(found, bool) or not isinstance(found, int | float) or not _fits(found):
        raise AnswerError(f'wrote {shown(text)}; wanted a number, or {{"score": number}}')
    return float(found)


def _fits(number: float) -> bool:
    try:
        return math.isfinite(float(number))
    except OverflowError:
        return False
