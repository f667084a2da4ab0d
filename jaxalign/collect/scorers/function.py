"""A scorer that is a Python function in a file of the user."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from ...data.fields import Field
from ...errors import UserError, near_miss
from ...recipe.own import run_file
from ...settings import score
from ...shown import shown
from .answers import Answered, Scored


class Function:
    """A function (prompt, response, row) -> number."""

    def __init__(self, record: score.Function):
        """Run the file.

        Args:
          record: the settings.

        Raises:
          UserError: the file is missing, fails, or has no such function.
        """
        path = Path(record.file).expanduser().absolute()
        try:
            source = path.read_bytes()
        except OSError as error:
            raise UserError(
                f"{path}: {error.strerror}; give the file of the function {record.name}"
            ) from None
        self._record, self._path = record, path
        self._sha256 = hashlib.sha256(source).hexdigest()
        module = vars(run_file(str(path), source))
        name = record.name or ""
        if name not in module:
            known = [k for k, v in module.items() if callable(v)]
            raise UserError(f"{path}: no function '{name}'; {near_miss(name, known)}")
        self._function = module[name]
        if not callable(self._function):
            raise UserError(f"{path}: '{name}' is {shown(self._function)}; wanted a function")

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """The options, and the SHA-256 of the file in place of its path."""
        return dataclasses.asdict(self._record) | {"file": self._sha256}

    def score(self, rows: Sequence[Answered]) -> Scored:
        """Score the answers of every row.

        Raises:
          UserError: the function fails or gives no finite number; names the row.
        """
        return Scored([[self._one(row, i, y) for i, y in enumerate(row.responses)] for row in rows])

    def _one(self, row: Answered, i: int, response: Field) -> float:
        where = f"{row.where}: answer {i}: {self._path}: {self._record.name}"
        try:
            found = self._function(row.prompt, response, dict(row.row))
        except Exception as error:  # the function is not ours
            line = _line(error, str(self._path))
            raise UserError(f"{where}{line} failed: {type(error).__name__}: {error}") from error
        if isinstance(found, bool):
            found = float(found)
        # Numbers of numpy and jax are no `Real`, but have no other form than a float.
        number = found if isinstance(found, Real) or getattr(found, "shape", None) == () else None
        if number is None or not math.isfinite(float(number)):
            raise UserError(f"{where} gave {shown(found)}; wanted a finite number")
        return float(number)

    def report(self) -> dict[str, float]:
        """Nothing: the scores say all."""
        return {}


def _line(error: Exception, path: str) -> str:
    """Where in the file an error arose, as ` line 3`."""
    line, trace = "", error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == path:
            line = f" line {trace.tb_lineno}"
        trace = trace.tb_next
    return line
