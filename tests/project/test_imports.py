"""The order of imports, no cycles, the size of files, and that importing does nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from lib.layers import LAYERS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "jaxalign"
SOURCES = sorted(PACKAGE.rglob("*.py"))

LAYER = {name: depth for depth, names in enumerate(LAYERS) for name in names}
WITHOUT_JAX = ("shown", "errors", "settings", "documents", "data")
DATA_READS = (
    *("shown", "documents", "digests", "sealed", "errors", "settings", "data"),
    *("core.batch", "core.layouts"),
)
ONLY_WHEN_USED = ("matplotlib", "tensorboardX", "wandb", "sklearn", "qwix", "openai")
ONLY_IN = {
    "sys.argv": ("cli",),
    "logging.basicConfig": ("cli",),
    "jax.config": ("api",),
    "jax.distributed": ("run",),
}


def unit(path: Path) -> str:
    """The entry of `LAYERS` that a file belongs to; '' for the package itself."""
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if name == "__init__" else name


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Absolute names of everything the file imports, at any depth."""
    package = path.relative_to(ROOT).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else ())))
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def ours(path: Path) -> set[str]:
    names = {name.split(".")[1] for name in imports(path) if name.startswith("jaxalign.")}
    return names - {unit(path)}


MODULES = [p for p in SOURCES if unit(p)]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_from_lower_layers(path):
    assert unit(path) in LAYER, f"{unit(path)} is in no layer; add it to LAYERS"
    depth = LAYER[unit(path)]
    above = {name for name in ours(path) if LAYER.get(name, -1) >= depth}
    assert above == set()


@pytest.mark.parametrize("path", [p for p in MODULES if unit(p) == "objectives"], ids=name_of)
def test_an_objective_knows_nothing_of_models_data_meshes_or_files(path):
    assert ours(path) <= {"core", "errors"}
    assert "jaxalign.core.sharding" not in {name.rpartition(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", [p for p in MODULES if unit(p) in WITHOUT_JAX], ids=name_of)
def test_data_code_names_neither_jax_nor_code_that_does(path):
    assert {name.split(".")[0] for name in imports(path)}.isdisjoint({"jax", "flax", "optax"})
    read = {name.partition(".")[2] for name in imports(path) if name.startswith("jaxalign.")}
    assert {name for name in read if not name.startswith(DATA_READS)} == set()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_command_line_reads_arguments_and_only_the_door_configures_jax(path):
    tree = ast.parse(path.read_text())
    chains = {ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    named = (chains | imports(path)) & set(ONLY_IN)
    assert {name for name in named if unit(path) not in ONLY_IN[name]} == set()


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_package_that_few_runs_need_is_imported_only_when_used(path):
    at_import = [
        node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert [name for name in at_import if (name or "").startswith(ONLY_WHEN_USED)] == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_file_stays_under_400_lines(path):
    assert len(path.read_text().splitlines()) < 400


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_function_stays_under_60_lines(path):
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    # An objective has 80: its docstring is the documentation of the method.
    limit = 80 if unit(path) == "objectives" else 60
    lengths = {f.name: (f.end_lineno or 0) - f.lineno + 1 for f in functions}
    assert {name: n for name, n in lengths.items() if n >= limit} == {}


def graph(folder: str) -> dict[str, set[str]]:
    """Modules of a folder of the repository, with the modules of the folder that each imports."""
    files = {name_of(path): path for path in (ROOT / folder).rglob("*.py")}
    # `from a.b import c` needs the module a.b.c if there is one, else a.b.
    needs = {
        name: {n if n in files else n.rpartition(".")[0] for n in imports(path)}
        for name, path in files.items()
    }
    return {name: needs[name] & set(files) - {name} for name in files}


@pytest.mark.parametrize("folder", ["jaxalign", "benchmarks"])
def test_no_modules_import_each_other_in_a_circle(folder):
    left = graph(folder)
    while done := {name for name, needs in left.items() if not needs & set(left)}:
        left = {name: needs for name, needs in left.items() if name not in done}
    assert sorted(left) == []


def test_importing_the_package_loads_nothing_else():
    heavy = ("jax", "numpy", "transformers", "jaxalign.api", "jaxalign.core")
    done = run(f"import sys, jaxalign; sys.exit(str([m for m in {heavy} if m in sys.modules]))")
    assert done.stderr == "[]\n"


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_importing_data_code_does_not_import_jax():
    names = [name_of(p) for p in MODULES if unit(p) in WITHOUT_JAX]
    done = run(f"import sys, {', '.join(names)}; sys.exit('jax' in sys.modules)")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_importing_everything_starts_no_backend_prints_nothing_and_adds_no_log_handler():
    names = [name_of(p) for p in SOURCES]
    # orbax adds a handler of its own; jax refuses another number of devices once a backend runs.
    done = run(
        "import logging, jax, orbax.checkpoint\n"
        "before = list(logging.root.handlers)\n"
        f"import {', '.join(names)}\n"
        "assert logging.root.handlers == before\n"
        "jax.config.update('jax_num_cpu_devices', 3)\n"
        "assert jax.device_count() == 3\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
