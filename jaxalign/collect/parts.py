"""A data file that is made part by part: a process that is killed loses one part.

While a file `data.jsonl` is made, the folder `data.jsonl.parts` has `inputs.json`, the fingerprints
of what the file depends on, and the finished parts, each written whole or not at all. The file
itself appears at the end, and the folder goes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.experimental import multihost_utils

from ..errors import UserError, writing
from ..files import first_process, whole_file, write_whole
from ..sealed import read_own, sealed

Rows = Sequence[Mapping[str, Any]]
Inputs = Mapping[str, str]
"""What a file depends on: names and fingerprints."""
SHOWN = 12
"""Characters of a fingerprint in a message."""


def write_parts(
    out: Path,
    inputs: Inputs,
    count: int,
    make: Callable[[int], Rows],
    *,
    accept_changes: bool = False,
    record: bool = False,
) -> None:
    """Write a file of JSON lines, part by part, or go on with one that is unfinished.

    All processes make the parts; the first one writes them.

    Args:
      out: the file; if it exists, nothing is made, unless its record differs.
      inputs: what the rows depend on.
      count: number of parts.
      make: the rows of a part, by its number; equal inputs give equal rows.
      accept_changes: whether parts that were made from other inputs are made again, and so a
        finished file with a record.
      record: whether the fingerprints stay next to the file, as `FILE.inputs.json`, and the next
        call compares them; otherwise a finished file is taken as it is.

    Raises:
      UserError: parts are there, or a file with a record, that were made from other inputs.
      RunError: a part cannot be written, or a record is missing or damaged.
    """
    folder = out.with_name(f"{out.name}.parts")
    kept = out.with_name(f"{out.name}.inputs.json")
    if out.exists() and not (record and _outdated(out, kept, inputs, accept_changes)):
        if first_process():
            shutil.rmtree(folder, ignore_errors=True)  # a kill may have left it
        return
    _begin(folder, inputs, accept_changes=accept_changes)
    files = [folder / f"{i:06d}.jsonl" for i in range(count)]
    missing = [i for i, file in enumerate(files) if not file.exists()]
    multihost_utils.sync_global_devices(f"missing parts of {out.name}")
    for i in missing:
        write_whole(files[i], "".join(map(line, make(i))))
    if record:
        write_whole(kept, sealed(dict(inputs)))  # first: there is no file without its record
    if first_process():
        with whole_file(out) as whole:
            for file in files:
                whole.write(file.read_bytes())
        with writing(folder):
            shutil.rmtree(folder)
    multihost_utils.sync_global_devices(f"made {out.name}")


def line(row: Mapping[str, Any]) -> str:
    """A row as a line of JSON."""
    return json.dumps(row, ensure_ascii=False, default=str) + "\n"


def _outdated(out: Path, kept: Path, inputs: Inputs, accept_changes: bool) -> bool:
    """Whether a finished file was made from other inputs; then it is gone."""
    held = read_own(kept, dict[str, str], f"delete {out} to make it again")
    if not (table := _differences(held, inputs)):
        return False
    if not accept_changes:
        raise UserError(
            f"{out}: was made from other inputs\n{table}\nrestore these, delete the file, or add "
            "--accept-changes to make it again"
        )
    # No process removes the file before all have seen it.
    multihost_utils.sync_global_devices(f"outdated {out.name}")
    if first_process():
        with writing(out):
            out.unlink()
    return True


def _differences(held: Inputs, inputs: Inputs) -> str:
    """A line for each input that has changed; empty if none has."""
    changed = [k for k in {**held, **inputs} if held.get(k) != inputs.get(k)]
    return "\n".join(f"  {k}: {_short(held.get(k))} -> {_short(inputs.get(k))}" for k in changed)


def _begin(folder: Path, inputs: Inputs, *, accept_changes: bool) -> None:
    file = folder / "inputs.json"
    remedy = f"delete {folder} to make its parts again"
    held = read_own(file, dict[str, str], remedy) if file.exists() else None
    changed = "" if held is None else _differences(held, inputs)
    if changed and not accept_changes:
        raise UserError(
            f"{folder}: its parts were made from other inputs\n{changed}\nrestore these, delete "
            "the folder, or add --accept-changes to make the parts again"
        )
    multihost_utils.sync_global_devices(f"inputs of {folder.name}")
    if changed or held is None:
        # Parts go before the record of their inputs: a kill in between leaves none without it.
        for part in folder.glob("*.jsonl") if first_process() else ():
            with writing(part):
                part.unlink()
        write_whole(file, sealed(dict(inputs)))
    multihost_utils.sync_global_devices(f"begun {folder.name}")


def _short(fingerprint: str | None) -> str:
    return "none" if fingerprint is None else fingerprint[:SHOWN]
