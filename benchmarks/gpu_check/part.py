"""The interface between the process of a part and the check: flags, results, turns on the GPU.

Standard library alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

BEGAN = time.monotonic()


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """The parser of a part, with the flags that the check passes to every part."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="file to append results to")
    parser.add_argument("--work", type=Path, required=True, help="folder shared by the parts")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, on any device")
    return parser


def turn() -> None:
    """Wait for the GPU. Do imports and other CPU work before, at no cost in GPU time."""
    sys.stdin.readline()


def record(out: Path, kind: str, **values: Any) -> None:
    """Append one result, on disk when this returns; `at`: seconds since the process began."""
    line = json.dumps({"kind": kind, "at": round(time.monotonic() - BEGAN, 1), **values})
    with out.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())
    print(line, flush=True)


def check(out: Path, name: str, error: float, bound: float) -> None:
    """Append a value that must be within its bound; NaN is not."""
    record(out, "value", check=name, error=error, bound=bound, right=bool(error <= bound))


def records(folder: Path) -> list[dict[str, Any]]:
    """All results in a folder, each with the name of its part; a line cut short is left out."""
    found = []
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found.append({"part": path.stem, **json.loads(line)})
            except json.JSONDecodeError:
                continue
    return found
