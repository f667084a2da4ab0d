"""Files of answers, as the commands that make data read and write them."""

from __future__ import annotations

import json

from . import runs


def read(path):
    """The rows of a file of JSON lines, each of which is valid by itself."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_answers(path, **columns):
    """A file of two prompts with two answers each, and the same further columns; its path."""
    rows = [{"prompt": f"{i}+1=", "answer": i + 1, "responses": [f"{i + 1}", "no"]} for i in (0, 1)]
    runs.write_rows(path, [row | columns for row in rows])
    return path
