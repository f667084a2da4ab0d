"""Data that a model or an objective cannot use, refused before training."""

from __future__ import annotations

from pathlib import Path

from ..core.objective import Objective
from ..data.store import ROWS, Examples
from ..errors import UserError
from ..models.decoder import Model
from ..models.spec import Spec


def check_ids(examples: Examples, spec: Spec, source: Path) -> None:
    """Refuse tokens and positions that the model does not have; jax would clamp them in silence.

    Raises:
      UserError: names the token or the length, and the model.
    """
    vocab, positions = spec.vocab, spec.max_positions
    if examples.longest > positions:
        raise UserError(
            f"data.max_length: a prompt with its response has {examples.longest} tokens, but "
            f"{source} was made for {positions} positions; set data.max_length to {positions} or "
            "less"
        )
    if (top := examples.largest_token) >= vocab:
        raise UserError(
            f"{source}: the data has token {top}, but this model's vocabulary has {vocab}; "
            "does the tokenizer belong to the model?"
        )


def check_columns(examples: Examples, objective: Objective[...]) -> None:
    """Refuse an example whose columns the objective cannot use.

    Raises:
      UserError: names the example and its columns.
    """
    if objective.check is None:
        return
    for part in examples.parts:
        for i in range(len(part)):
            if wrong := objective.check(columns := part.columns_of(i)):
                got = ", ".join(f"{name} {value}" for name, value in columns.items())
                raise UserError(f"{part.place(i)}: {wrong}; got {got}; correct or drop the row")


def check_branches(examples: Examples, model: Model) -> None:
    """Refuse examples with more branches than the model has room for on TPUs.

    Raises:
      UserError: names the number of branches.
    """
    if examples.branches > model.branches:
        raise UserError(
            f"{examples[0].where} and the rows after it: an example has {examples.branches} scored "
            f"sequences; the model was built for {model.branches}, the most of the first "
            f"{ROWS:,} rows; set data.streaming to false"
        )
