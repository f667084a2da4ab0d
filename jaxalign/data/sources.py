"""Raw records of a data set: files of JSON lines, parquet, and data sets of the hub."""

from __future__ import annotations

import gzip
import itertools
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError, near_miss

FILES = (".jsonl", ".jsonl.gz", ".parquet")


def raw_records(path: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, raw record) of every row of a file, a folder or a data set of the hub.

    Raises:
      UserError: it is missing, broken or of another kind.
    """
    file = Path(path)
    if file.is_file() or path.endswith(FILES):
        if not file.is_file():
            siblings = [p.name for p in file.parent.glob("*") if p.name.endswith(FILES)]
            hint = f"; {near_miss(file.name, siblings)}" if siblings else ""
            raise UserError(f"{path}: no such file; looked for {file.absolute()}{hint}")
        if path.endswith(".parquet"):
            return _parquet(file)
        if path.endswith(FILES):
            return _json_lines(file)
        raise UserError(f"{path}: cannot read this kind of file; wanted {', '.join(FILES)}")
    return _hub(path, split)


def _json_lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as lines:
        try:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{file} line {number}", _json_object(line, f"{file} line {number}")
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(
                f"{file} line {number + 1}: not a whole gzip file ({error}); fetch it again"
            ) from None


def _json_object(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error}); one object a line is wanted") from None
    if not isinstance(record, dict):
        raise UserError(f"{where}: got a JSON {type(record).__name__}; wanted an object")
    return record


def _parquet(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        parts = pyarrow.parquet.ParquetFile(file).iter_batches()
        records = itertools.chain.from_iterable(part.to_pylist() for part in parts)
        for number, record in enumerate(records, 1):
            yield f"{file} row {number}", record
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{file}: not a whole parquet file ({error}); fetch it again") from None


def _hub(path: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import datasets

    try:
        rows = datasets.load_dataset(path, split=split)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: no such file, and as a data set of the hub, split '{split}': {error}; "
            f"give a {', '.join(FILES)} file or the name and split of a data set"
        ) from None
    for number, record in enumerate(rows, 1):
        yield f"{path} [{split}] row {number}", dict(record)
