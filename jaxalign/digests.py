"""Checksums of files, and names of temporary files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
from pathlib import Path


def sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def own_suffix() -> str:
    """A suffix of names of files that no other process writes; process ids repeat across hosts."""
    return f"{socket.gethostname()}.{os.getpid()}"


def kept_sha256(file: Path, folder: Path) -> str:
    """The SHA-256 of a file, kept in a folder as long as size and times of the file are."""
    file = file.absolute()
    about = file.stat()
    # A copy may bring its time of modification with it, but not the time of its last change.
    state = [str(file), about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino]
    name = hashlib.sha256(str(file).encode()).hexdigest()[:16]
    kept = folder / f"source-{name}.json"
    with contextlib.suppress(OSError, ValueError, KeyError):
        found = json.loads(kept.read_text(encoding="utf-8"))
        if found["state"] == state:
            return found["sha256"]
    digest = sha256(file)
    with contextlib.suppress(OSError):  # of a folder that cannot be written, files are read again
        folder.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{own_suffix()}.tmp")
        partial.write_text(json.dumps({"state": state, "sha256": digest}), encoding="utf-8")
        partial.replace(kept)
    return digest
