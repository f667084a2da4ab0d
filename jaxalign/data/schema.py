"""Rows of a preference data set: reading files, recognising columns, fitting them to a layout."""

from __future__ import annotations

import gzip
import itertools
import json
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError, near_miss
from ..settings import Data

TURN = "\n\nAssistant:"
"""What the last turn of an HH transcript begins with; the prompt ends just after it."""
HUMAN = "\n\nHuman:"
FILES = (".jsonl", ".jsonl.gz", ".parquet")
COLUMNS = ("prompt", "chosen", "rejected", "completion", "label", "text")
OWN = ("label", "weight")
"""Columns of a batch that are not read by their name: the layout's label, the packer's weight."""
SCHEMAS = (
    "prompt/chosen/rejected, chosen/rejected, prompt/completion/label, prompt/completion, text"
)

Field = str | list[dict[str, str]]
"""A text, or the messages {role, content} of a chat."""


class Row(NamedTuple):
    """A prompt and its responses, all of them text or all of them messages."""

    prompt: Field
    responses: tuple[Field, ...]
    names: tuple[str, ...]  # columns that the responses came from
    label: float | None  # 1: desirable, 0: undesirable, None: not said
    where: str  # "path line 118", for messages
    columns: Mapping[str, float] = {}  # what else the objective reads


def read_rows(
    settings: Data,
    path: str,
    split: str,
    layout: str,
    dropped: Counter[str],
    columns: Collection[str] = (),
) -> Iterator[Row]:
    """The rows of a data set as a layout wants them.

    Args:
      settings: `limit` and `skip_empty` are read.
      path: a .jsonl, .jsonl.gz or .parquet file, a folder, or a data set of the hub.
      split: the split to read, where `path` is no file.
      layout: "Demos", "Pairs", "Labeled" or "Mismatched".
      dropped: how many rows were left out, by reason; added to as the rows are read.
      columns: what the objective reads besides responses; of these, `OWN` are not in the file.

    Raises:
      UserError: the data set is missing or broken, or a row does not fit the layout or lacks a
        column.
    """
    records = itertools.islice(_records(path, split), settings.limit)
    wanted = [name for name in columns if name not in OWN]
    for where, record in records:
        record = {k: v for k, v in record.items() if v is not None}
        row = parse(record, where)
        if row is None:
            dropped["prompts differ"] += 1
            continue
        row = row._replace(columns={name: _number(record, name, where) for name in wanted})
        for fitted in fit_layout(row, layout, dropped):
            if _all_filled(fitted, settings.skip_empty):
                yield fitted
            else:
                dropped["empty response"] += 1


def prompts_of(path: str) -> list[Field]:
    """The column `prompt` of a .jsonl, .jsonl.gz or .parquet file.

    Raises:
      UserError: the file is missing or broken, or a row has no prompt.
    """
    return [_field(record, "prompt", where) for where, record in _records(path, "")]


def parse(record: Mapping[str, Any], where: str) -> Row | None:
    """A record without nulls, by the columns it has; None where two transcripts share no prompt.

    Raises:
      UserError: the columns are none of `SCHEMAS`, or a value is of the wrong kind.
    """
    if "chosen" in record or "rejected" in record:
        chosen, rejected = (_field(record, k, where) for k in ("chosen", "rejected"))
        if "prompt" not in record or _is_transcript(record["prompt"], chosen, rejected):
            return _split_transcripts(chosen, rejected, where)
        return _row(_field(record, "prompt", where), (chosen, rejected), where)
    if "completion" in record or "label" in record:
        prompt, response = (_field(record, k, where) for k in ("prompt", "completion"))
        label = _label(record["label"], where) if "label" in record else None
        return _row(prompt, (response,), where, ("completion",), label)
    if "text" in record:
        return _row("", (_text(_field(record, "text", where), "text", where),), where, ("text",))
    hints = [near_miss(k, COLUMNS) for k in record if k not in COLUMNS]
    hint = next((h for h in hints if h.startswith("did you mean")), f"wanted one of: {SCHEMAS}")
    raise UserError(f"{where}: no known columns; got {_listed(record)}; {hint}")


def fit_layout(row: Row, layout: str, dropped: Counter[str]) -> list[Row]:
    """The rows that a layout makes of one row; those it has no use for are counted.

    Raises:
      UserError: the layout needs what the row does not have.
    """
    paired = len(row.responses) == 2
    if layout == "Demos":
        if row.label == 0.0:
            dropped["label is 0"] += 1
            return []
        return [row._replace(responses=row.responses[:1], names=row.names[:1], label=None)]
    if not paired and (layout == "Pairs" or row.label is None):
        wanted = "'chosen' and 'rejected'" if layout == "Pairs" else "a 'label', or pairs"
        raise UserError(
            f"{row.where}: the objective needs {wanted}; got {_listed(row.names)}; "
            "choose other data or another objective"
        )
    if layout == "Pairs" or not paired:
        return [row]
    if row.responses[0] == row.responses[1]:
        dropped["identical responses"] += 1
        return []
    return [
        row._replace(responses=(response,), names=(name,), label=label)
        for response, name, label in zip(row.responses, row.names, (1.0, 0.0), strict=True)
    ]


def _records(path: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, record) of every row of a file, a folder or a data set of the hub."""
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


def _value(record: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in record:
        others = [k for k in record if k not in (*COLUMNS, name)]
        hint = near_miss(name, others) if others else ""
        hint = f"; {hint}" if hint.startswith("did you mean") else ""
        raise UserError(f"{where}: no '{name}'; the columns are {_listed(record)}{hint}")
    return record[name]


def _number(record: Mapping[str, Any], name: str, where: str) -> float:
    value = _value(record, name, where)
    # Over 3e38 a float32 is infinite; NaN compares as false.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 3e38:
        raise UserError(f"{where}: '{name}' is {str(value)[:40]!r}; wanted a finite number")
    return float(value)


def _field(record: Mapping[str, Any], name: str, where: str) -> Field:
    value = _value(record, name, where)
    if isinstance(value, str):
        return _encodable(value, name, where)
    if not isinstance(value, list) or not all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in value
    ):
        got = json.dumps(value, default=str)[:80]
        raise UserError(
            f"{where}: '{name}' is neither text nor messages; got {got}; "
            'wanted a string or a list of {"role": ..., "content": ...}'
        )
    for message in value:
        _encodable(message["content"], name, where)
    return value


def _encodable(text: str, name: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: '{name}' holds half a surrogate pair at character {error.start}; repair it"
        ) from None
    return text


def _text(value: Field, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: '{name}' holds messages; wanted text; use prompt/completion")
    return value


def _label(value: Any, where: str) -> float:
    if value not in (0, 1):
        raise UserError(f"{where}: 'label' is {value!r}; wanted true, false, 1 or 0")
    return float(value)


def _row(
    prompt: Field,
    responses: tuple[Field, ...],
    where: str,
    names: tuple[str, ...] = ("chosen", "rejected"),
    label: float | None = None,
) -> Row:
    """A row whose fields are all messages as soon as one of them is."""
    if any(isinstance(field, list) for field in (prompt, *responses)):
        prompt = _as_messages(prompt, "user")
        responses = tuple(_as_messages(response, "assistant") for response in responses)
    return Row(prompt, responses, names, label, where)


def _as_messages(field: Field, role: str) -> list[dict[str, str]]:
    if isinstance(field, str):
        return [{"role": role, "content": field}] if field else []
    return field


def _is_transcript(prompt: Field, chosen: Field, rejected: Field) -> bool:
    """Whether the responses are whole chats that repeat a prompt given as plain text."""
    both = (chosen, rejected)
    return isinstance(prompt, str) and all(
        isinstance(x, list) and len(x) > 1 and x[0]["role"] != "assistant" for x in both
    )


def _split_transcripts(chosen: Field, rejected: Field, where: str) -> Row | None:
    """Cut two transcripts at the boundary of turns where they part; None if at none."""
    if isinstance(chosen, list) and isinstance(rejected, list):
        common = min(len(chosen), len(rejected)) - 1
        cut = next((i for i in range(common) if chosen[i] != rejected[i]), common)
        tails = chosen[cut:] + rejected[cut:]
        if cut < 1 or any(message["role"] != "assistant" for message in tails):
            return None
        return _row(chosen[:cut], (chosen[cut:], rejected[cut:]), where)
    chosen, rejected = _text(chosen, "chosen", where), _text(rejected, "rejected", where)
    if TURN not in chosen and TURN not in rejected:
        raise UserError(
            f"{where}: 'chosen' and 'rejected' have no turn {TURN!r} to end the prompt at, "
            "and there is no 'prompt'; add a column 'prompt'"
        )
    turns = [match.end() for match in re.finditer(TURN, chosen)]
    cut = max((end for end in turns if rejected.startswith(chosen[:end])), default=0)
    tails = (chosen[cut:], rejected[cut:])
    # A later turn on either side answers something the other side was never asked.
    if cut == 0 or any(turn in tail for turn in (TURN, HUMAN) for tail in tails):
        return None
    return _row(chosen[:cut], tails, where)


def _all_filled(row: Row, skip_empty: bool) -> bool:
    """Whether every response says something.

    Raises:
      UserError: one does not, and empty ones are not to be skipped.
    """
    for name, response in zip(row.names, row.responses, strict=True):
        texts = [response] if isinstance(response, str) else [m["content"] for m in response]
        if not "".join(texts).strip():
            if skip_empty:
                return False
            raise UserError(f"{row.where}: '{name}' is empty; drop it or set data.skip_empty")
    return True


def _listed(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
