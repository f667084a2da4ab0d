"""An axis letter means one thing in the whole library."""

import io
import re
import tokenize
from pathlib import Path

import pytest

from jaxalign.core import types

PACKAGE = Path(types.__file__).parents[1]
LETTERS = set(re.findall(r"(?:^ {4}|  )(Hk|[A-Zb-z]) {2,3}(?=\w)", types.__doc__, re.M))
SHAPE = re.compile(r"\[([\w ,.*/+()-]+)\]")


def shapes(path):
    """Everything in brackets in the comments and docstrings of a file."""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    text = [t.string for t in tokens if t.type in (tokenize.COMMENT, tokenize.STRING)]
    return [shape for piece in text for shape in SHAPE.findall(piece)]


def test_the_table_has_the_letters_of_a_batch():
    assert set("BRTKLMDVnSb") | {"Hk"} <= LETTERS


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.name)
def test_every_axis_letter_of_a_shape_is_in_the_table(path):
    used = {word for shape in shapes(path) for word in re.findall(r"\b[A-Z]\b|\bHk\b", shape)}
    assert used - LETTERS == set()
