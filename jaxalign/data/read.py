"""From a data set to the records of a layout."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping

from ..core.layouts import Layout
from ..errors import UserError, near_miss
from ..settings import Data
from ..shown import listed
from .fields import COLUMNS, Raw, number, scores
from .fit import FITS, Fit
from .records import HUMAN, PAIR, TURN, Columns, Record, make_record, recognize
from .sources import raw_records
from .tally import Tally
from .turns import says_something

FURTHER = (
    *("weight", "tools", "chat_template_kwargs", "scores", "score_chosen", "score_rejected"),
    *("rationale", "samples"),
)
"""Columns that a row may have next to those that say what kind of record it is."""
OWN = ("label", "weight")
"""Columns of a batch that are not read by their name: the layout's label, the packer's weight."""
LEAST = 1e-30
"""The smallest weight but 0: a loss times a smaller one is 0 in float32."""


def read_records(
    settings: Data,
    path: str,
    split: str,
    layout: Layout,
    tally: Tally,
    columns: Collection[str] = (),
) -> Iterator[Record]:
    """`fit_records` of a .jsonl, .jsonl.gz or .parquet file, a folder, or a data set of the hub."""
    rows = itertools.islice(raw_records(path, split, max_line=settings.max_line), settings.limit)
    return fit_records(settings, rows, layout, tally, columns)


def fit_records(
    settings: Data,
    rows: Iterable[tuple[str, Raw]],
    layout: Layout,
    tally: Tally,
    columns: Collection[str] = (),
    stops: Collection[str] = (),
) -> Iterator[Record]:
    """The records of a data set, one for each example of a layout.

    Args:
      settings: `skip_empty`, `columns` and `roles` are read.
      rows: the rows of the data set, each with its place for messages.
      layout: the responses of an example.
      tally: counts of the rows; increased as they are read.
      columns: what the objective reads besides responses; of these, `OWN` are not in the file.
      stops: texts of the stop tokens; a response that is only one of them is empty.

    Raises:
      UserError: the data set is missing or broken, or a row does not fit the layout or lacks a
        column.
    """
    fit = FITS[layout]
    width = None
    _check_names(settings.columns, columns)
    for where, row in rows:
        raw = renamed(row, settings.columns, where)
        for record in fit_row(raw, where, settings, fit, tally, columns):
            width = _checked_width(record, layout, width)
            if _all_filled(record, settings.skip_empty, stops):
                yield fit.prompts(record) if fit.prompts else record
            else:
                tally.dropped.add("empty response", where)


def fit_row(
    raw: Raw,
    where: str,
    settings: Data,
    fit: Fit,
    tally: Tally,
    columns: Collection[str] = (),
) -> Iterator[Record]:
    """The records of one row, whose columns are `renamed`; see `fit_records`."""
    record = recognize(raw, where, settings.roles)
    if record is None:
        tally.dropped.add("prompts differ", where)
        return
    if record.repeated:
        tally.noted.add("prompt repeated by the response, and cut", where)
    elif _repeats(record):
        tally.noted.add("text of the prompt repeated by the response, and scored", where)
    if isinstance(record.prompt, str) and TURN in record.prompt and _goes_on(record):
        tally.noted.add("a turn of the human in the response, and scored", where)
    weight = number(raw, "weight", where) if "weight" in raw else 1.0
    if weight < 0:
        raise UserError(f"{where}: 'weight' is {weight:g}; wanted 0 or more")
    if 0 < weight < LEAST:
        raise UserError(f"{where}: 'weight' is {weight:g}; wanted 0, or at least {LEAST:g}")
    if weight == 0:
        tally.dropped.add("weight is 0", where)
        return
    wanted = [name for name in columns if name not in OWN]
    record = record._replace(columns=_columns(raw, record, wanted), weight=weight)
    if fit.best_first and "scores" not in wanted:
        _check_order(raw, record)
    for fitted in fit.split(record, tally.dropped):
        yield _with_extra(raw, fitted, fit)


def _check_names(names: Mapping[str, str], columns: Collection[str]) -> None:
    """Refuse a new name for a column that nothing reads."""
    known = (*COLUMNS, *FURTHER, *columns)
    for name in names:
        if name not in known:
            raise UserError(f"data.columns: no column '{name}' is read; {near_miss(name, known)}")


def _repeats(record: Record) -> bool:
    """Whether a response begins with the whole text of the prompt, or of its begun answer."""
    asked, said = record.prompt, record.responses
    if isinstance(asked, list) and asked and asked[-1]["role"] == "assistant":
        asked = asked[-1]["content"] or ""
        said = tuple(y[0]["content"] if isinstance(y, list) and y else "" for y in said)
    if not isinstance(asked, str) or not asked.strip():
        return False
    return any(isinstance(y, str) and y.startswith(asked) for y in said)


def _goes_on(record: Record) -> bool:
    """Whether a response is a text in which the human of a transcript speaks."""
    return any(isinstance(y, str) and HUMAN in y for y in record.responses)


def renamed(row: Raw, names: Mapping[str, str], where: str) -> Raw:
    """A row without nulls, its columns renamed: {our name: name in the file}."""
    raw = {k: v for k, v in row.items() if v is not None}
    for ours, theirs in names.items():
        if theirs not in row:
            raise UserError(
                f"{where}: data.columns.{ours} is '{theirs}', but the columns are {listed(row)}"
            )
    others = {k: v for k, v in raw.items() if k not in (*names, *names.values())}
    return others | {ours: raw[theirs] for ours, theirs in names.items() if theirs in raw}


def _columns(raw: Raw, record: Record, wanted: Collection[str]) -> Columns:
    """The columns wanted; the scores of a pair are its `score_chosen` and `score_rejected`."""
    columns: dict[str, float | tuple[float, ...]] = {}
    for name in wanted:
        if name != "scores":
            columns[name] = number(raw, name, record.where)
        elif record.is_pair:
            columns[name] = tuple(number(raw, f"score_{n}", record.where) for n in PAIR)
        else:
            columns[name] = scores(raw, len(record.responses), record.where)
    return columns


def _check_order(raw: Raw, record: Record) -> None:
    """Refuse responses that scores contradict, where their order is what is read."""
    if not record.is_pair and "scores" in raw:
        found = list(scores(raw, len(record.responses), record.where))
        if found != sorted(found, reverse=True):
            raise UserError(
                f"{record.where}: 'scores' {found} are out of order; the objective reads the order "
                "of the responses, so put the best first"
            )


def _with_extra(raw: Raw, record: Record, fit: Fit) -> Record:
    """The record with the responses that its layout reads from a column of their own."""
    if fit.extra is None:
        return record
    extra = fit.extra(raw, record.where)
    names, responses = (*record.names, *extra), (*record.responses, *extra.values())
    made = make_record(record.prompt, responses, record.where, names)
    return record._replace(prompt=made.prompt, responses=made.responses, names=names)


def _checked_width(record: Record, layout: Layout, width: int | None) -> int:
    """The length of the list of responses, the same in every record; 1 where there is no list."""
    if not layout.many:
        return 1
    *others, name = layout.responses
    count = len(record.responses) - len(others)
    if width is not None and count != width:
        raise UserError(
            f"{record.where}: has {count} {name}; the rows before have {width}; a data set has "
            "the same number in every row"
        )
    return count


def _all_filled(record: Record, skip_empty: bool, stops: Collection[str]) -> bool:
    """Whether every response says something.

    Raises:
      UserError: one does not, and empty ones are not to be skipped.
    """
    for name, response in zip(record.names, record.responses, strict=True):
        if isinstance(response, str):
            filled = response.strip() not in ("", *stops)
        else:
            answers = [turn for turn in response if turn["role"] == "assistant"]
            filled = bool(answers) and all(says_something(turn, stops) for turn in answers)
        if not filled:
            if skip_empty:
                return False
            raise UserError(f"{record.where}: '{name}' is empty; drop it or set data.skip_empty")
    return True
