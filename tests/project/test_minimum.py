"""The oldest versions that are tested are the lower bounds of pyproject.toml."""

import itertools
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def requirement(line):
    """(name, operator, version) of `name>=version`."""
    return re.fullmatch(r"([\w.\-]+)(>=|==)([\w.]+)", line.strip()).groups()


def test_every_bound_is_a_version_that_is_installed_and_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    # Not installed by the tests: jax for other hardware, and what only logs elsewhere.
    chosen = ("quantize", "udm", "endpoint", "test", "docs")
    tested = [*project["dependencies"], *(x for name in chosen for x in extras[name])]
    bounds = {
        name.lower(): version
        for name, _, version in (requirement(x) for x in tested if not x.startswith("jaxalign["))
    }
    lines = (ROOT / "tests" / "minimum.txt").read_text().splitlines()
    pinned = {
        name.lower(): (operator, version)
        for name, operator, version in (requirement(x) for x in lines if not x.startswith("#"))
    }
    assert pinned == {name: ("==", version) for name, version in bounds.items()}


def test_jax_has_one_bound_for_all_hardware():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    given = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    bounds = {re.split(">=", x)[1] for x in given if re.match(r"jax(\[\w+\])?>=", x)}
    assert len(bounds) == 1
