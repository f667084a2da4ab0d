"""Files written whole or not at all, and by the first process alone; text and JSON."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from .documents import from_json, refuse_pointer
from .errors import UserError, unwritten, writing


def first_process() -> bool:
    """Whether this process is the one that writes files and prints."""
    import jax  # here, so that programs that only read files need no jax

    return jax.process_index() == 0


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` at the end: after a kill there is old or new.

    Raises:
      RunError: the file cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    with writing(path):
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def write_whole(path: Path, text: str) -> None:
    """Replace a small file by `text`, whole or not at all; the other processes write nothing."""
    if first_process():
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(text.encode())


def write_text(path: Path, text: str) -> None:
    """Write a text that a user wants in a file.

    Raises:
      RunError: the file cannot be written.
    """
    with writing(path):
        path.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path | None]:
    """Gives the first process a new folder to fill, which replaces `folder` at the end.

    The other processes get None, and wait at the end for the first.

    Raises:
      RunError: the folder cannot be written.
    """
    folder = Path(folder).absolute()
    partial = folder.with_name(f".{folder.name}.partial")
    writer = first_process()
    try:
        if writer:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        yield partial if writer else None
        if writer:
            _replace(folder, partial)
    except (OSError, SafetensorError) as error:
        raise unwritten(folder, error) from error
    finally:
        if writer:
            shutil.rmtree(partial, ignore_errors=True)
    from jax.experimental import multihost_utils

    # The next stage reads the folder on every host.
    multihost_utils.sync_global_devices(f"saved {folder.name}")


def _replace(folder: Path, new: Path) -> None:
    """Replace `folder` by `new`: at any moment the old one is whole, here or as `.folder.old`."""
    old = folder.with_name(f".{folder.name}.old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def read_text(file: Path) -> str:
    """The text of a UTF-8 file.

    Raises:
      UserError: the file is missing or no UTF-8 text.
    """
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as text: {error}") from None


def check_out(out: str) -> None:
    """Refuse a file to write that cannot be one, before the work whose result it gets.

    Raises:
      UserError: it is a folder, or is in a folder that does not exist.
    """
    file = Path(out)
    if file.is_dir():
        raise UserError(f"--out: {file} is a folder; give a file")
    if not file.absolute().parent.is_dir():
        raise UserError(f"--out: no folder {file.parent}; make it, or give a file elsewhere")


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      UserError: the file is missing, or holds no JSON object.
    """
    try:
        refuse_pointer(file)
        raw = from_json(file.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{file}: missing; is {file.parent} a complete checkpoint?") from None
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not readable as JSON ({error}); download it again") from error
    if not isinstance(raw, dict):
        raise UserError(f"{file}: got {type(raw).__name__}, wanted an object; download it again")
    return raw
