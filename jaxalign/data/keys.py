"""The key of a tokenized data set: a digest of everything that its tokens depend on."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Collection
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..core.layouts import Layout
from ..digests import kept_sha256, sha256
from ..settings import Data
from .encode import Encoder
from .sources import hub_fingerprint, local_files

READ = (
    "limit",
    "columns",
    "roles",
    "max_length",
    "max_prompt",
    "min_response",
    "too_long",
    "skip_empty",
)
"""Settings that the tokens depend on; the encoder has the others in its fingerprint."""


def data_key(
    settings: Data,
    path: str,
    split: str,
    encoder: Encoder,
    layout: Layout,
    columns: Collection[str],
    folder: Path,
) -> str:
    """The key of a data set.

    Args:
      settings: limits, and names of columns and roles.
      path: the argument of `raw_records`.
      split: the split of a data set of the hub.
      encoder: the tokenizer and its chat template.
      layout: the responses of an example.
      columns: what the objective reads besides responses.
      folder: where digests of files are kept, so that an unchanged file is read once.

    Returns:
      64 hexadecimal digits.

    Raises:
      UserError: there is no such data set.
    """
    about = {
        "source": [path, split, _source(path, split, folder)],
        "encoder": encoder.fingerprint,
        "layout": repr(layout),
        "columns": sorted(columns),
        "settings": {name: _plain(getattr(settings, name)) for name in READ},
        "code": _code(),
    }
    return _digest(about)


def _source(path: str, split: str, folder: Path) -> str:
    """A digest of the rows."""
    files = local_files(path)
    if files is None:
        return hub_fingerprint(path, split)
    return _digest([[file.name, kept_sha256(file, folder)] for file in files])


@functools.cache
def _code() -> str:
    """A digest of the programs that make tokens: this package, and those it calls."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    libraries = [version(name) for name in ("tokenizers", "transformers", "jinja2")]
    return _digest([[sha256(file) for file in files], libraries])


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, dict) else value


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
