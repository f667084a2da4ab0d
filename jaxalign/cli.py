"""The command line: choice of the command, logging and exit codes.

Exit codes: 0 done; 1 the run failed (a full disk, a loss of NaN, the end of another host); 2 a
mistake in the input; 130 interrupted (Ctrl-C); 141 the reader of the output closed the pipe; 143
stopped by SIGTERM. Training saves its state before 130 and 143.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

from .commands import COMMANDS
from .errors import RunError, UserError, message, near_miss


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # XLA reports every compilation detail at INFO; warnings of ours and theirs still show.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    # We use only the tokenizers of transformers; silence its warning about missing torch.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    # Orbax logs with a traceback what it then raises.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    # Writes of its that end after a first one has failed report to an event loop that it has left.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.unraisablehook = functools.partial(_unraisable, sys.unraisablehook)
    try:
        try:
            return _dispatch(argv)
        finally:
            print(end="", flush=True)  # so that a closed pipe is met here, not at exit
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except UserError as e:
        print(f"jaxalign: {e}", file=sys.stderr)
        return 2
    except (RunError, OSError) as e:
        print(f"jaxalign: {message(str(e))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        parts = argv[:1] in (["sample"], ["score"], ["compare"])
        kept = "the finished parts are kept" if parts else "the last checkpoint is intact"
        print(f"jaxalign: interrupted; {kept}", file=sys.stderr)
        return 130


def _unraisable(before: Callable[..., object], unraisable: Any) -> None:
    """Print an exception of a callback, but for one that is late for its event loop."""
    if str(unraisable.exc_value) != "Event loop is closed":
        before(unraisable)


def _dispatch(argv: list[str]) -> int:
    if argv[:1] == ["--version"]:
        print(f"jaxalign {version('jaxalign')}")
        return 0
    if not argv or argv[0] in ("-h", "--help"):
        lines = [
            f"  {name:<10} {(f.__doc__ or '').splitlines()[0]}" for name, f in COMMANDS.items()
        ]
        print("usage: jaxalign COMMAND ...\n\n" + "\n".join(lines))
        print("\n`jaxalign COMMAND --help` shows its arguments; `jaxalign --version` the version.")
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        raise UserError(f"no command '{argv[0]}'; {near_miss(argv[0], COMMANDS)}")
    return COMMANDS[argv[0]](argv[1:])


if __name__ == "__main__":
    sys.exit(main())
