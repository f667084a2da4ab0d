"""Rows of a preference data set: recognising columns, fitting them to a layout."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from ..errors import UserError, near_miss
from ..settings import Data
from .files import records_of

TURN = "\n\nAssistant:"
"""What the last turn of an HH transcript begins with; the prompt ends just after it."""
HUMAN = "\n\nHuman:"
PAIR = ("chosen", "rejected")
COLUMNS = ("prompt", *PAIR, "responses", "completion", "label", "text")
OWN = ("label", "weight")
"""Columns of a batch that are not read by their name: the layout's label, the packer's weight."""
SCHEMAS = (
    "prompt/chosen/rejected, chosen/rejected, prompt/responses, prompt/completion/label, "
    "prompt/completion, text"
)

Field = str | list[dict[str, str]]
"""A text, or the messages {role, content} of a chat."""


Columns = Mapping[str, float | tuple[float, ...]]
"""Numbers of a row by name; `scores` has one for each response."""


class Record(NamedTuple):
    """A prompt and its responses, all of them text or all of them messages."""

    prompt: Field
    responses: tuple[Field, ...]
    names: tuple[str, ...]  # columns that the responses came from
    label: float | None  # 1: desirable, 0: undesirable, None: not said
    where: str  # "path line 118", for messages
    columns: Columns  # what else the objective reads
    prompts: tuple[Field, ...] = ()  # of each response, where not all have the row's


def read_records(
    settings: Data,
    path: str,
    split: str,
    layout: str,
    dropped: Counter[str],
    columns: Collection[str] = (),
) -> Iterator[Record]:
    """The rows of a data set as a layout wants them.

    Args:
      settings: `limit` and `skip_empty` are read.
      path: a .jsonl, .jsonl.gz or .parquet file, a folder, or a data set of the hub.
      split: the split to read, where `path` is no file.
      layout: one of `examples.RESPONSES`.
      dropped: how many rows were left out, by reason; added to as the rows are read.
      columns: what the objective reads besides responses; of these, `OWN` are not in the file.

    Raises:
      UserError: the data set is missing or broken, or a row does not fit the layout or lacks a
        column.
    """
    records = itertools.islice(records_of(path, split), settings.limit)
    wanted = [name for name in columns if name not in OWN]
    width = None
    for where, record in records:
        record = {k: v for k, v in record.items() if v is not None}
        row = parse(record, where)
        if row is None:
            dropped["prompts differ"] += 1
            continue
        row = row._replace(columns=_columns(record, row, wanted))
        if layout == "Ranked" and "scores" not in wanted:
            _check_order(record, row)
        for fitted in fit_layout(row, layout, dropped):
            fitted = _with_beside(record, fitted, layout)
            alone = layout == "Dispreferred"
            count = len(fitted.responses) - alone
            width = width or count
            if count != width:
                raise UserError(
                    f"{where}: has {count} {'samples' if alone else 'responses'}; the rows before "
                    f"have {width}; a data set has the same number in every row"
                )
            if _all_filled(fitted, settings.skip_empty):
                yield fitted
            else:
                dropped["empty response"] += 1


def prompts_of(path: str) -> list[Field]:
    """The column `prompt` of a .jsonl, .jsonl.gz or .parquet file.

    Raises:
      UserError: the file is missing or broken, or a row has no prompt.
    """
    return [_field(record, "prompt", where) for where, record in records_of(path, "")]


def parse(record: Mapping[str, Any], where: str) -> Record | None:
    """A record without nulls, by the columns it has; None where two transcripts share no prompt.

    Raises:
      UserError: the columns are none of `SCHEMAS`, or a value is of the wrong kind.
    """
    if "chosen" in record or "rejected" in record:
        chosen, rejected = (_field(record, k, where) for k in ("chosen", "rejected"))
        if "prompt" not in record or _is_transcript(record["prompt"], chosen, rejected):
            return _split_transcripts(chosen, rejected, where)
        return _row(_field(record, "prompt", where), (chosen, rejected), where)
    if "responses" in record:
        return _group(record, where)
    if "completion" in record or "label" in record:
        prompt, response = (_field(record, k, where) for k in ("prompt", "completion"))
        label = _label(record["label"], where) if "label" in record else None
        return _row(prompt, (response,), where, ("completion",), label)
    if "text" in record:
        return _row("", (_text(_field(record, "text", where), "text", where),), where, ("text",))
    hints = [near_miss(k, COLUMNS) for k in record if k not in COLUMNS]
    hint = next((h for h in hints if h.startswith("did you mean")), f"wanted one of: {SCHEMAS}")
    raise UserError(f"{where}: no known columns; got {_listed(record)}; {hint}")


def fit_layout(row: Record, layout: str, dropped: Counter[str]) -> list[Record]:
    """The rows that a layout makes of one row; those it has no use for are counted.

    Raises:
      UserError: the layout needs what the row does not have.
    """
    paired, grouped = row.names == PAIR, row.names[0] == _nth(0)
    single = "a 'completion', or pairs", not grouped
    wanted, fits = {
        "Pairs": ("'chosen' and 'rejected'", paired),
        "Ranked": ("'responses', or pairs", paired or grouped),
        "Rationales": ("'chosen' and 'rejected'", paired),
        "Revised": ("'chosen' and 'rejected'", paired),
        "Demos": single,
        "Forget": single,
        "Dispreferred": single,
    }.get(layout, ("a 'label', or pairs", paired or row.label is not None))
    if not fits:
        raise UserError(
            f"{row.where}: the objective needs {wanted}; got {_listed(row.names)}; "
            "choose other data or another objective"
        )
    if layout in ("Demos", "Forget", "Dispreferred"):
        which, other = (0, 0.0) if layout == "Demos" else (-1, 1.0)
        if row.label == other:
            dropped[f"label is {other:g}"] += 1
            return []
        response, name = row.responses[which], row.names[which]
        return [row._replace(responses=(response,), names=(name,), label=None)]
    if layout in ("Pairs", "Ranked", "Rationales", "Revised") or not paired:
        return [row]
    if row.responses[0] == row.responses[1]:
        dropped["identical responses"] += 1
        return []
    return [
        row._replace(responses=(response,), names=(name,), label=label)
        for response, name, label in zip(row.responses, row.names, (1.0, 0.0), strict=True)
    ]


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


def _columns(record: Mapping[str, Any], row: Record, wanted: Collection[str]) -> Columns:
    """The columns wanted; the scores of a pair are its `score_chosen` and `score_rejected`."""
    columns: dict[str, float | tuple[float, ...]] = {}
    for name in wanted:
        if name != "scores":
            columns[name] = _number(record, name, row.where)
        elif row.names == PAIR:
            columns[name] = tuple(_number(record, f"score_{n}", row.where) for n in PAIR)
        else:
            columns[name] = _scores(record, row)
    return columns


def _scores(record: Mapping[str, Any], row: Record) -> tuple[float, ...]:
    values, count = _value(record, "scores", row.where), len(row.responses)
    if not isinstance(values, list) or len(values) != count:
        got = json.dumps(values, default=str)[:80]
        raise UserError(f"{row.where}: 'scores' is {got}; wanted a list of {count}, one a response")
    return tuple(
        _number({f"scores[{i}]": v}, f"scores[{i}]", row.where) for i, v in enumerate(values)
    )


def _check_order(record: Mapping[str, Any], row: Record) -> None:
    """Refuse responses that scores contradict, where their order is what is read."""
    if row.names != PAIR and "scores" in record:
        scores = list(_scores(record, row))
        if scores != sorted(scores, reverse=True):
            raise UserError(
                f"{row.where}: 'scores' {scores} are out of order; the objective reads the order "
                "of the responses, so put the best first"
            )


def _nth(i: int) -> str:
    return f"responses[{i}]"


def _group(record: Mapping[str, Any], where: str) -> Record:
    fields = _fields(record, "responses", 2, "two or more to compare", where)
    return _row(_field(record, "prompt", where), (*fields.values(),), where, (*fields,))


def _with_beside(record: Mapping[str, Any], row: Record, layout: str) -> Record:
    """The row with the further responses of its layout: a rationale, or samples."""
    if layout == "Rationales":
        more = {"rationale": _field(record, "rationale", row.where)}
    elif layout == "Dispreferred":
        more = _fields(record, "samples", 1, "one or more", row.where)
    else:
        return row
    names, responses = (*row.names, *more), (*row.responses, *more.values())
    return _row(row.prompt, responses, row.where, names)._replace(columns=row.columns)


def _fields(
    record: Mapping[str, Any], name: str, least: int, wanted: str, where: str
) -> dict[str, Field]:
    """The entries of a list of responses, by the name of each."""
    values = _value(record, name, where)
    if not isinstance(values, list) or len(values) < least:
        got = json.dumps(values, default=str)[:80]
        raise UserError(f"{where}: '{name}' is {got}; wanted a list of {wanted}")
    named = {f"{name}[{i}]": value for i, value in enumerate(values)}
    return {key: _field(named, key, where) for key in named}


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
    names: tuple[str, ...] = PAIR,
    label: float | None = None,
) -> Record:
    """A row whose fields are all messages as soon as one of them is."""
    if any(isinstance(field, list) for field in (prompt, *responses)):
        prompt = _as_messages(prompt, "user")
        responses = tuple(_as_messages(response, "assistant") for response in responses)
    return Record(prompt, responses, names, label, where, {})


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


def _split_transcripts(chosen: Field, rejected: Field, where: str) -> Record | None:
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


def _all_filled(row: Record, skip_empty: bool) -> bool:
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
