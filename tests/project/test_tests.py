"""What tests import."""

import ast
import importlib
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
MODULES = sorted(TESTS.rglob("*.py"))
SHARED = {"lib", "oracles", "mutation"}
OURS = {path.relative_to(TESTS).parts[0].removesuffix(".py") for path in MODULES} | {"tests"}


def imported(path):
    """The names of all modules that a file imports, at any depth."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module or "." for node in nodes if isinstance(node, ast.ImportFrom)}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(TESTS)))
def test_no_module_imports_a_test(path):
    ours = {name for name in imported(path) if name.partition(".")[0] in OURS}
    assert {name for name in ours if name.partition(".")[0] not in SHARED} == set()
    assert not any(part.startswith("test_") for name in ours for part in name.split("."))


def test_programs_in_strings_import_what_exists():
    line = re.compile(r"^ *(from jaxalign[\w.]* import [\w, ]+)$", re.M)
    for statement in {found for path in MODULES for found in line.findall(path.read_text())}:
        exec(statement, {})


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(TESTS)))
def test_every_helper_that_a_module_uses_exists(path):
    """A slow test would say so only when it runs."""
    tree = ast.parse(path.read_text())
    helpers = {
        alias.asname or alias.name: importlib.import_module(f"lib.{alias.name}")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "lib"
        for alias in node.names
    }
    used = {
        (node.value.id, node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    missing = {(n, attr) for n, attr in used if n in helpers and not hasattr(helpers[n], attr)}
    assert missing == set()
