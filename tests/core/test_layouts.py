"""The records of layouts, and that nothing else tells layouts apart by name."""

import dataclasses
import re
from pathlib import Path

import pytest

from jaxalign.core import types
from jaxalign.core.layouts import LAYOUTS
from jaxalign.data.fit import FITS

ROOT = Path(__file__).parents[2]
CODE = [
    p
    for folder in ("jaxalign", "benchmarks", "examples", "docs", "tests")
    for p in (ROOT / folder).rglob("*.py")
    if p not in (ROOT / "jaxalign" / "core" / "layouts.py", ROOT / "jaxalign" / "__init__.py")
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_the_dataclass_of_a_layout_has_its_responses(layout):
    data = getattr(types, layout.name)
    assert data.LAYOUT is layout
    assert tuple(f.name for f in dataclasses.fields(data)) == layout.responses
    assert set(layout.frozen) <= set(layout.responses)


def test_every_layout_has_a_way_to_be_read():
    assert set(FITS) == set(LAYOUTS)


def test_no_other_code_names_a_layout_in_a_string():
    quoted = re.compile(rf"""["']({"|".join(layout.name for layout in LAYOUTS)})["']""")
    assert [p for p in CODE if quoted.search(p.read_text())] == []
