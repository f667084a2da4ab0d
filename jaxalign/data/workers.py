"""Tasks in processes of their own, which import neither jax nor the program that started them."""

from __future__ import annotations

import collections
import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..errors import RunError, UserError

AHEAD = 2
"""Tasks that a process is sent before its first result is read."""


def in_processes(
    function: Callable[[Any, Any], Any], shared: Any, tasks: Iterable[Any], processes: int
) -> Iterator[Any]:
    """`function(shared, task)` of each task, in the order of the tasks.

    Args:
      function: a function of a module; a process imports that module and nothing else of ours.
      shared: what every task is given; it is sent once to each process.
      tasks: the tasks; no more of them are read ahead than are worked on.
      processes: how many; with 1 the tasks are worked on here.

    Raises:
      UserError: a task raised it.
      RunError: a process ended before its tasks did.
    """
    if processes == 1:
        for task in tasks:
            yield function(shared, task)
        return
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(_Worker(function, shared)) for _ in range(processes)]
        waiting: collections.deque[_Worker] = collections.deque()
        for i, task in enumerate(tasks):
            if len(waiting) == AHEAD * processes:
                yield waiting.popleft().receive()
            workers[i % processes].send(task)
            waiting.append(workers[i % processes])
        while waiting:
            yield waiting.popleft().receive()


class _Worker:
    """A process that answers each task that it is sent."""

    def __init__(self, function: Callable[[Any, Any], Any], shared: Any):
        self._start = (function, shared)

    def __enter__(self) -> _Worker:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # The processes share the cores; threads of each would compete for them.
            env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
        )
        self.send(self._start)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        self._process.wait()

    def send(self, task: Any) -> None:
        assert self._process.stdin is not None
        try:
            pickle.dump(task, self._process.stdin)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def receive(self) -> Any:
        assert self._process.stdout is not None
        try:
            error, result = pickle.load(self._process.stdout)
        except EOFError:
            raise self._ended() from None
        if error is not None:
            raise error
        return result

    def _ended(self) -> RunError:
        code = self._process.wait()
        return RunError(
            f"a process that tokenizes ended with code {code}; is there enough memory? "
            "run again to go on"
        )


def _work() -> None:
    """Answer tasks from standard input until it ends."""
    receive, send = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    with contextlib.suppress(EOFError, KeyboardInterrupt, BrokenPipeError):
        function, shared = pickle.load(receive)
        while True:
            task = pickle.load(receive)
            try:
                answer = (None, function(shared, task))
            except UserError as error:
                answer = (error, None)
            pickle.dump(answer, send)
            send.flush()


if __name__ == "__main__":
    _work()
