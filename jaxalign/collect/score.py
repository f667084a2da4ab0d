"""Scores: every answer of a file gets a number from each scorer, and one from all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from ..data.fields import Raw
from ..data.records import PAIR
from ..data.sources import raw_records
from ..errors import RunError, UserError
from ..recipe.scorers import name_of
from ..settings import score
from .scorers import models
from .scorers.answers import Answered, Scored, Scorer, answered
from .scorers.function import Function
from .scorers.judge import Judge
from .scorers.program import Program
from .scorers.rules import RULES, Rule

Row = tuple[str, Raw]
"""Where a row is, for messages, and its columns."""


def read_rows(path: str, split: str = "train") -> list[Row]:
    """The rows of a data set.

    Args:
      path: a file, or a data set of the hub.
      split: the split to read, if it is on the hub.

    Raises:
      UserError: it is missing or broken, or has no rows.
    """
    rows: list[Row] = list(raw_records(path, split))
    if not rows:
        raise UserError(f"{path}: has no rows; give it at least one")
    return rows


def open_scorers(records: Sequence[score.Scorer], mesh: Mesh, dtype: str) -> list[Scorer]:
    """The scorers of some settings, in their order, checked as far as no row is needed.

    Args:
      records: the settings, of `recipe.scorers.read_scorers`.
      mesh: the device mesh of models.
      dtype: dtype of models, float32 or bfloat16.

    Raises:
      UserError: a file, a folder or a program is missing, or a model is of the wrong kind.
    """
    return [_opened(record, mesh, dtype) for record in records]


def _opened(record: score.Scorer, mesh: Mesh, dtype: str) -> Scorer:
    if type(record) in models.OPEN:
        return models.OPEN[type(record)](record, mesh, dtype)
    if isinstance(record, score.Function):
        return Function(record)
    if isinstance(record, score.Program):
        return Program(record)
    if isinstance(record, score.Judge):
        return Judge(record)
    return Rule(record, RULES[type(record)])


def score_rows(
    rows: Sequence[Row],
    records: Sequence[score.Scorer],
    scorers: Sequence[Scorer],
    combine: score.Combine = "sum",
) -> list[dict[str, Any]]:
    """The rows with their scores, in the order of the rows; a column of the same name is replaced.

    Rows with responses get `scores`, pairs `score_chosen` and `score_rejected`, others `score`.
    Where there are several scorers, or one has a name, each also has a column of its own: `scores_`
    and its name, and likewise for the others.

    Args:
      rows: the rows, each with its place for messages.
      records: the settings of the scorers, with their weights and names.
      scorers: the scorers, of `open_scorers`.
      combine: how the scores of several scorers become one.

    Raises:
      UserError: a row has no answers or does not fit a scorer.
      RunError: a scorer failed, or gave no finite number.
    """
    read = [answered(raw, where) for where, raw in rows]
    _check_combine(combine, records, read)
    out = [dict(raw) for _, raw in rows]
    shown = len(records) > 1 or records[0].name is not None
    values: list[list[list[float]]] = []
    for record, scorer in zip(records, scorers, strict=True):
        name = name_of(record)
        found = scorer.score(read)
        _check_finite(found, read, name)
        values.append(found.values)
        columns = {"scores": found.values, **found.columns} if shown else dict(found.columns)
        for column, entries in columns.items():
            _put(out, read, f"{column}_{name}" if shown else column, entries)
    weights = np.array([record.weight for record in records])
    combined = [
        COMBINE[combine](np.array(by_scorer), weights).tolist()
        for by_scorer in zip(*values, strict=True)
    ]
    _put(out, read, "scores", combined)
    return out


def _check_combine(
    combine: score.Combine, records: Sequence[score.Scorer], read: Sequence[Answered]
) -> None:
    if combine == "votes" and (alone := next((r for r in read if len(r.responses) < 2), None)):
        raise UserError(
            f"{alone.where}: has one answer, and combine: votes compares the answers of a prompt; "
            "choose sum, mean or min"
        )
    if combine == "mean" and not any(record.weight for record in records):
        raise UserError("combine: mean needs a weight other than 0; all weights are 0")


def _put(
    out: Sequence[dict[str, Any]], read: Sequence[Answered], name: str, entries: list[list[Any]]
) -> None:
    """Write an answer column: one list, a column for each response of a pair, or one value."""
    stem, _, end = name.partition("_")
    single = stem.removesuffix("s") if stem == "scores" else stem
    end = f"_{end}" if end else ""
    for row, about, values in zip(out, read, entries, strict=True):
        if about.record.is_group:
            row[name] = values
        elif about.record.is_pair:
            row |= {f"{single}_{n}{end}": v for n, v in zip(PAIR, values, strict=True)}
        else:
            row[f"{single}{end}"] = values[0]


def _check_finite(found: Scored, read: Sequence[Answered], name: str) -> None:
    for row, values in zip(read, found.values, strict=True):
        for i, value in enumerate(values):
            if not math.isfinite(value):
                raise RunError(
                    f"{row.where}: the scorer {name} gave {value} for answer {i}; wanted a finite "
                    "number; fix the scorer, or drop the row"
                )


def _votes(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    others = (values.sum(1, keepdims=True) - values) / (values.shape[1] - 1)
    return weights @ (0.5 * (np.sign(values - others) + 1))


COMBINE: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "sum": lambda values, weights: weights @ values,
    "mean": lambda values, weights: weights @ values / np.abs(weights).sum(),
    "min": lambda values, weights: (weights[:, None] * values).min(0),
    "votes": _votes,
}
"""(scores [scorers, R], weights [scorers]) -> scores [R]."""
