"""JSON files that jaxalign writes for itself, with a checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from .documents import from_json
from .errors import RunError

SEAL = "seal"
"""The key of the checksum."""

T = TypeVar("T")


def sealed(value: Mapping[str, Any]) -> str:
    """The JSON text of an object, with a checksum of it."""
    return json.dumps({**value, SEAL: _seal(json.loads(json.dumps(value)))}, indent=1)


def _seal(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def read_own(file: Path, kind: type[T], remedy: str = "") -> T:
    """The object in a JSON file that jaxalign has written.

    Args:
      file: the file.
      kind: the type of the object, a dict or a NamedTuple.
      remedy: what to do if it is damaged; none: restore the file, or start another run.

    Raises:
      RunError: the file is missing or damaged: no object of this kind, or its checksum differs.
    """
    try:
        raw = from_json(file.read_bytes(), finite=False)
        seal = raw.pop(SEAL, None) if isinstance(raw, dict) else None
        if seal not in (None, _seal(raw)):
            raise ValueError("its checksum differs")
        return pydantic.TypeAdapter(kind).validate_python(raw)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (OSError, ValueError) as error:
        reason = str(error)
    remedy = remedy or "restore it from a copy, or start in another run.dir"
    raise RunError(f"{file}: damaged ({reason[:200]}); {remedy}")
