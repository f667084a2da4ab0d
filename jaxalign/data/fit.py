"""How a record becomes the examples of a layout: one entry for each layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from ..core.layouts import (
    DEMOS,
    DISPREFERRED,
    FORGET,
    LABELED,
    MISMATCHED,
    PAIRS,
    RANKED,
    RATIONALES,
    REVISED,
    Layout,
)
from ..errors import UserError
from ..shown import listed
from .fields import Field, Raw, field, fields
from .prompts import revisions, why
from .records import Record
from .tally import Reasons


def pair(record: Record, dropped: Reasons) -> list[Record]:
    """The record itself, which must be a pair."""
    _require(record.is_pair, record, "'chosen' and 'rejected'")
    return [record]


def ranking(record: Record, dropped: Reasons) -> list[Record]:
    """The record itself, a pair or a list of responses."""
    _require(record.is_pair or record.is_group, record, "'responses', or pairs")
    return [record]


def best(record: Record, dropped: Reasons) -> list[Record]:
    """The chosen response of a pair, or a response not labeled undesirable."""
    return _single(record, dropped, 0, unwanted=0.0)


def worst(record: Record, dropped: Reasons) -> list[Record]:
    """The rejected response of a pair, or a response not labeled desirable."""
    return _single(record, dropped, -1, unwanted=1.0)


def labeled(record: Record, dropped: Reasons) -> list[Record]:
    """A labeled response, or the two of a pair, chosen as 1 and rejected as 0."""
    _require(record.is_pair or record.label is not None, record, "a 'label', or pairs")
    if not record.is_pair:
        return [record]
    if record.responses[0] == record.responses[1]:
        dropped.add("identical responses", record.where)
        return []
    return [
        record._replace(responses=(response,), names=(name,), label=label)
        for response, name, label in zip(record.responses, record.names, (1.0, 0.0), strict=True)
    ]


def rationale(raw: Raw, where: str) -> dict[str, Field]:
    """The column `rationale`."""
    return {"rationale": field(raw, "rationale", where)}


def samples(raw: Raw, where: str) -> dict[str, Field]:
    """The entries of the column `samples`."""
    return fields(raw, "samples", 1, "one or more", where)


@dataclasses.dataclass(frozen=True)
class Fit:
    """How a record becomes the examples of a layout."""

    split: Callable[[Record, Reasons], list[Record]]
    """(record, dropped) -> one record for each example; those it has no use for are counted."""
    extra: Callable[[Raw, str], dict[str, Field]] | None = None
    """(raw record, where) -> further responses, by name, which follow the responses of `split`."""
    prompts: Callable[[Record], Record] | None = None
    """The record with a prompt for each response; None: all responses have the record's."""
    best_first: bool = False
    """Whether the order of the responses is read where no `scores` are."""


FITS: dict[Layout, Fit] = {
    DEMOS: Fit(best),
    PAIRS: Fit(pair),
    LABELED: Fit(labeled),
    MISMATCHED: Fit(labeled),
    FORGET: Fit(worst),
    RANKED: Fit(ranking, best_first=True),
    RATIONALES: Fit(pair, extra=rationale, prompts=why),
    REVISED: Fit(pair, prompts=revisions),
    DISPREFERRED: Fit(worst, extra=samples),
}


def _single(record: Record, dropped: Reasons, which: int, *, unwanted: float) -> list[Record]:
    """One response of a record, unless its label is unwanted."""
    _require(not record.is_group, record, "a 'completion', or pairs")
    if record.label == unwanted:
        dropped.add(f"label is {unwanted:g}", record.where)
        return []
    response, name = record.responses[which], record.names[which]
    return [record._replace(responses=(response,), names=(name,), label=None)]


def _require(fits: bool, record: Record, wanted: str) -> None:
    if not fits:
        raise UserError(
            f"{record.where}: the objective needs {wanted}; got {listed(record.names)}; "
            "choose other data or another objective"
        )
