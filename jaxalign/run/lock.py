"""The lock of a run's folder: one command at a time writes there."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console
from rich.text import Text

from ..errors import UserError
from ..files import first_process

FILE = "lock"
WIDTH = 1024
"""Bytes of the longest outcome that the first process tells the others."""
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""Errors of a file system without locks."""


@contextlib.contextmanager
def locked(folder: Path, command: str, console: Console) -> Iterator[None]:
    """Hold the lock of a run's folder, which is made if it is not there.

    The operating system holds the lock for the open file, also on NFS, and releases it when the
    process ends in whatever way. The content of the file is for messages alone. The first process
    of several holds the lock for all of them.

    Args:
      folder: the folder of the run.
      command: the command that writes in the folder.
      console: where to say that a file system has no locks.

    Raises:
      UserError: another process holds the lock, or the folder cannot be written; on every host.
    """
    held, outcome = (None, "")
    if first_process():
        try:
            held = _take(folder, command)
        except OSError as error:
            outcome = _refusal(folder, error)
    outcome = _from_first(outcome)
    try:
        if outcome.startswith("run.dir:"):
            raise UserError(outcome)
        if outcome:
            console.print(Text(outcome))
        yield
    finally:
        if held is not None:
            os.ftruncate(held, 0)
            os.close(held)


def _take(folder: Path, command: str) -> int:
    """The descriptor of the locked file.

    Raises:
      BlockingIOError: another process holds the lock.
      OSError: the folder cannot be written, or its file system has no locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        since = datetime.datetime.now().isoformat(" ", timespec="seconds")
        holder = f"{command}, process {os.getpid()} on {socket.gethostname()}, since {since}"
        os.ftruncate(held, 0)
        os.write(held, holder.encode())
    except BaseException:
        os.close(held)
        raise
    return held


def _refusal(folder: Path, error: OSError) -> str:
    """The message of an attempt that failed; only a mistake begins with the name of the setting."""
    if isinstance(error, BlockingIOError):
        return (
            f"run.dir: {folder} is in use by {_holder(folder)}; wait until it ends, or choose "
            "another --run.dir"
        )
    if error.errno in NO_LOCKS:
        return f"{folder}: its file system has no locks; start no second command on this folder"
    return f"run.dir: {folder} cannot be written ({error.strerror}); choose another --run.dir"


def _holder(folder: Path) -> str:
    """The process that holds the lock; it writes its name just after it takes the lock."""
    for _ in range(20):
        if found := (folder / FILE).read_text(errors="replace").strip():
            return found
        time.sleep(0.05)
    return "another process"


def _from_first(text: str) -> str:
    """The text of the first process, on every host."""
    letters = text.encode()[:WIDTH].ljust(WIDTH, b"\0")
    sent = multihost_utils.broadcast_one_to_all(np.frombuffer(letters, np.uint8))
    return np.asarray(sent).tobytes().rstrip(b"\0").decode(errors="ignore")
