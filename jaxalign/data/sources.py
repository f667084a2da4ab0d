"""Raw records of a data set: files of every usual kind, folders of them, data sets of the hub."""

from __future__ import annotations

import csv
import glob
import gzip
import io
import itertools
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..documents import from_json, refuse_pointer
from ..errors import UserError, nearest
from ..shown import listed, shown
from .fields import CHATS, Cell
from .lines import LONGEST, check_texts, entries, lines, too_long

Row = tuple[str, dict[str, Any]]
"""Where a row is, for messages, and its columns."""
JSON_COLUMNS = (*CHATS, "tools", "chat_template_kwargs")
"""Columns of a .csv file that hold JSON text."""
BROKEN = (gzip.BadGzipFile, EOFError, zlib.error)
"""What is raised for a damaged gzip file."""


def raw_records(
    path: str, split: str, *, streaming: bool = False, max_line: int = LONGEST
) -> Iterator[Row]:
    """(where, raw record) of every row of a data set.

    Args:
      path: a file of `FILES`, a glob of such files (read in the order of their names), a folder
        that `datasets.save_to_disk` wrote, or an argument of `datasets.load_dataset`.
      split: the split to read, where the path is no file and no glob.
      streaming: whether a data set of the hub is read over the network, without a copy on disk.
      max_line: the most bytes of a line of a file, and characters of a text.

    Raises:
      UserError: it is missing, broken or of another kind, or a line or a text is too long.
    """
    file = Path(path)
    if _is_glob(path):
        return itertools.chain.from_iterable(
            raw_records(name, split, max_line=max_line) for name in _matching(path)
        )
    if file.is_dir() and _saved_to_disk(file):
        return _datasets(path, split, lambda: _from_disk(path, split), max_line)
    if file.is_file() or path.endswith(tuple(FILES)):
        return _read(file, max_line)
    return _datasets(path, split, lambda: _from_hub(path, split, streaming), max_line)


def local_files(path: str) -> list[Path] | None:
    """The files that `raw_records` reads; None for a data set of the hub.

    Raises:
      UserError: a file is missing.
    """
    file = Path(path)
    if _is_glob(path):
        return list(map(Path, _matching(path)))
    if file.is_dir() and _saved_to_disk(file):
        return sorted(p for p in file.rglob("*") if p.is_file())
    if file.is_file() or path.endswith(tuple(FILES)):
        _check_file(file)
        return [file]
    return None


def hub_fingerprint(path: str, split: str) -> str:
    """The fingerprint that `datasets` gives a data set of the hub.

    Raises:
      UserError: there is no such data set.
    """
    return str(_loaded(path, split, lambda: _from_hub(path, split, False))._fingerprint)


def _is_glob(path: str) -> bool:
    return glob.has_magic(path) and not Path(path).exists()


def _matching(path: str) -> list[str]:
    found = sorted(name for name in glob.glob(path, recursive=True) if Path(name).is_file())
    if not found:
        raise UserError(f"{path}: no file has such a name; looked in {Path.cwd()}")
    return found


def _check_file(file: Path) -> None:
    if not file.is_file():
        siblings = sorted(p.name for p in file.parent.glob("*") if p.name.endswith(tuple(FILES)))
        # By what comes before the first dot: all files of a kind end the same.
        stems = {name.partition(".")[0]: name for name in siblings}
        near = stems.get(nearest(file.name.partition(".")[0], stems) or "")
        hint = f"did you mean '{near}'? " if near else ""
        hint = f"; {hint}its folder has {listed(siblings)}" if siblings else ""
        raise UserError(f"{file}: no such file; looked for {file.absolute()}{hint}")
    refuse_pointer(file)


def _read(file: Path, most: int) -> Iterator[Row]:
    _check_file(file)
    kind = next((end for end in FILES if file.name.endswith(end)), None)
    if kind is None:
        raise UserError(f"{file}: cannot read this kind of file; wanted {', '.join(FILES)}")
    return FILES[kind](file, most)


def _open(file: Path) -> Any:
    return gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb")


def _json_lines(file: Path, most: int) -> Iterator[Row]:
    number = 0
    with _open(file) as stream:
        try:
            for number, line in enumerate(lines(stream, most, str(file)), 1):
                if line.strip():
                    yield f"{file} line {number}", _json_object(line, f"{file} line {number}")
        except BROKEN as error:
            raise UserError(
                f"{file} line {number + 1}: not a whole gzip file ({error}); fetch it again"
            ) from None


def _json(file: Path, most: int) -> Iterator[Row]:
    """A list of objects, or one object a line."""
    try:
        with _open(file) as stream:
            first = stream.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    except (OSError, *BROKEN) as error:
        raise UserError(f"{file}: not JSON ({error}); wanted a list of objects") from None
    return _json_list(file, most) if first == b"[" else _json_lines(file, most)


def _json_list(file: Path, most: int) -> Iterator[Row]:
    with io.TextIOWrapper(_open(file), "utf-8-sig", newline="") as stream:
        try:
            for number, record in enumerate(entries(stream, most, str(file)), 1):
                where = f"{file} entry {number}"
                yield where, _object(record, where)
        except UserError:
            raise
        except (OSError, *BROKEN, ValueError, RecursionError) as error:
            raise UserError(f"{file}: not JSON ({error}); wanted a list of objects") from None


def _json_object(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = from_json(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error}); one object a line is wanted") from None
    return _object(record, where)


def _object(record: Any, where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise UserError(f"{where}: got a JSON {type(record).__name__}; wanted an object")
    return record


def _csv(file: Path, most: int) -> Iterator[Row]:
    """Every cell is a text, an empty one null; columns of chats and tools hold JSON text."""
    csv.field_size_limit(most)
    number = 0
    with io.TextIOWrapper(_open(file), "utf-8-sig", newline="") as stream:
        rows = csv.reader(lines(stream, most, str(file)), strict=True)
        try:
            names = next(rows, [])
            _check_names(names, file)
            for number, cells in enumerate(filter(None, rows), 1):
                where = f"{file} row {number}"
                if len(cells) != len(names):
                    raise UserError(
                        f"{where}: number of cells is {len(cells)}; the first line names "
                        f"{len(names)} columns; put a text with commas or line breaks in quotes"
                    )
                given = zip(names, cells, strict=True)
                yield where, {k: _from_text(k, Cell(v), where) if v else None for k, v in given}
        except UnicodeDecodeError as error:
            raise UserError(f"{file}: not UTF-8 ({error.reason}); save it as UTF-8") from None
        except csv.Error as error:
            if "field limit" in str(error):
                raise too_long(f"{file} row {number + 1}: a cell", most) from None
            raise UserError(
                f"{file} row {number + 1}: not CSV ({error}); put a text with commas, quotes or "
                'line breaks in quotes, and write a quote in it as ""'
            ) from None
        except BROKEN as error:
            raise UserError(
                f"{file} row {number + 1}: not a whole gzip file ({error}); fetch it again"
            ) from None


def _check_names(names: Sequence[str], file: Path) -> None:
    """Refuse columns of the same name, of which a row would have only the last."""
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise UserError(f"{file}: has two columns {shown(twice)}; rename or remove one of them")


def _from_text(name: str, cell: Cell, where: str) -> Any:
    if name not in JSON_COLUMNS:
        return cell
    try:
        return from_json(cell)
    except ValueError as error:
        raise UserError(f"{where}: '{name}' is not JSON ({error})") from None


def _parquet(file: Path, most: int) -> Iterator[Row]:
    from pyarrow import parquet

    return _arrow_rows(file, lambda: parquet.ParquetFile(file).iter_batches(), most)


def _arrow(file: Path, most: int) -> Iterator[Row]:
    """An Arrow file or stream, as `datasets` writes them."""
    import pyarrow

    def batches() -> Iterable[Any]:
        source = pyarrow.memory_map(str(file))
        try:
            return pyarrow.ipc.open_stream(source)
        except pyarrow.ArrowInvalid:
            reader = pyarrow.ipc.open_file(source)
            return (reader.get_batch(i) for i in range(reader.num_record_batches))

    return _arrow_rows(file, batches, most)


def _arrow_rows(file: Path, batches: Callable[[], Iterable[Any]], most: int) -> Iterator[Row]:
    try:
        number = 0
        for part in batches():
            _check_names(part.schema.names, file)
            for record in part.to_pylist():
                number += 1
                check_texts(record, most, f"{file} row {number}")
                yield f"{file} row {number}", _inner_without_nulls(record)
    except UserError:
        raise
    except Exception as error:  # of a damaged file pyarrow raises any
        text = " ".join(str(error).split())[:200]
        raise UserError(
            f"{file}: not a whole {file.suffix[1:]} file ({text}); fetch it again"
        ) from None


def _inner_without_nulls(record: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _without_nulls(v) for k, v in record.items()}


def _without_nulls(value: Any) -> Any:
    """A value without the nulls that Arrow puts where another row has a key."""
    if isinstance(value, Mapping):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(v) for v in value]
    return value


def _saved_to_disk(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _from_disk(path: str, split: str) -> Any:
    import datasets

    found: Any = datasets.load_from_disk(path)
    if not isinstance(found, datasets.DatasetDict):
        return found
    if split not in found:
        raise ValueError(f"it has the splits {listed(found, quote='')}")
    return found[split]


def _from_hub(path: str, split: str, streaming: bool) -> Any:
    import datasets

    if Path(path).is_dir():
        _check_folder(Path(path), datasets.load_dataset_builder(path).config.data_files)
    return datasets.load_dataset(path, split=split, streaming=streaming)


def _check_folder(folder: Path, read: Mapping[str, Iterable[str]] | None) -> None:
    """Refuse a folder of which `datasets` reads some files only: the most common type, its splits.

    Raises:
      ValueError: names a file that is in no split.
    """
    card = folder / "README.md"
    if read is None or (card.exists() and "configs:" in card.read_text(errors="replace")):
        return  # the card says which files to read
    found = {Path(file) for files in read.values() for file in files}
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        if any(part.startswith((".", "__", "dataset_info")) for part in parts):
            continue
        if file.name.endswith(tuple(FILES)) and file.absolute() not in found:
            raise ValueError(
                f"{file.name} is of another type than most files, or its name is of no split, so "
                f"it would not be read; move it, or give a glob, as {folder}/*{file.suffix}"
            )


def _loaded(path: str, split: str, load: Callable[[], Any]) -> Any:
    from datasets.exceptions import DatasetsError

    try:
        return load()
    except (OSError, ValueError, DatasetsError) as error:
        # A file of a folder that cannot be read is only the cause of what `datasets` raises.
        text = " ".join(str(error.__cause__ or error).split())[:300]
        raise UserError(
            f"{path}: no such file, and as a folder or a data set of the hub, split '{split}': "
            f"{text}; give a {', '.join(FILES)} file, or the name and split of a data set"
        ) from None


def _datasets(path: str, split: str, load: Callable[[], Any], most: int) -> Iterator[Row]:
    for number, record in enumerate(_loaded(path, split, load), 1):
        check_texts(record, most, f"{path} [{split}] row {number}")
        yield f"{path} [{split}] row {number}", _inner_without_nulls(record)


FILES: dict[str, Callable[[Path, int], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".jsonl.gz": _json_lines,
    ".json": _json,
    ".json.gz": _json,
    ".csv": _csv,
    ".csv.gz": _csv,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
"""Readers of files, by the end of their names."""
