"""Plants one mistake at a time in the objectives and checks that the tests notice.

    python tests/mutation.py [--every N] [OBJECTIVE ...]

A mistake is a flipped sign or a dropped term: `a + b` becomes `a - b`, `a` or `b`, and `-a` becomes
`a`. The mutant is called as the tests call the objective, with every set of hyper-parameters of its
oracle. It is caught if loss, gradient or metrics differ by more than the tolerance of the tests, or
if the call fails. A survivor is written into a copy of the project, in which the tests run whose
names contain the name of the objective. Prints the mutants that survive both, and caught/planted;
exits with 1 if there are survivors.
"""

import argparse
import ast
import copy
import inspect
import itertools
import shutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import jax
import numpy as np
from lib import objectives as h
from oracles import HYPER, ORACLES

from jaxalign.objectives import OBJECTIVES

SEEDS = (0, 1, 2, 3)
MINUS = {ast.Add: ast.Sub, ast.Sub: ast.Add}


def mutants(tree):
    """(line, what was done, the mutated tree) for every mistake that can be made in a module."""
    for path, node in enumerate(ast.walk(tree)):
        if isinstance(node, ast.BinOp) and type(node.op) in MINUS:
            for change in ("flip", "left", "right"):
                yield node.lineno, f"{change} of `{ast.unparse(node)}`", planted(tree, path, change)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and not is_axis(node):
            yield node.lineno, f"no minus in `{ast.unparse(node)}`", planted(tree, path, "operand")


def is_axis(node):
    """Whether it is the -1 of `sum(-1)`: of a matrix, 1 is the same axis."""
    return isinstance(node.operand, ast.Constant) and node.operand.value == 1


def planted(tree, path, change):
    """The tree with one node, counted as `ast.walk` does, changed."""
    tree = copy.deepcopy(tree)
    node = list(ast.walk(tree))[path]
    if change == "flip":
        node.op = MINUS[type(node.op)]()
        return tree

    class Replace(ast.NodeTransformer):
        def visit(self, other):
            return getattr(node, change) if other is node else super().generic_visit(other)

    return ast.fix_missing_locations(Replace().visit(tree))


def objectives(tree, like):
    """The objectives of a module made from a tree."""
    module = types.ModuleType(like.__name__)
    module.__package__ = like.__package__
    module.__file__ = like.__file__
    exec(compile(tree, like.__file__, "exec"), vars(module))
    return {
        n: o
        for n, o in vars(module).items()
        if n in OBJECTIVES and o.fn.__module__ == like.__name__
    }


def outcome(o, seed, hyper):
    """Loss and gradient as the training step has them, and the metrics."""
    case = h.draw(o, seed)
    state = previous = None
    if o.init_state is not None:
        previous = h.draw(o, seed + 1)
        state = h.call(o, previous, **hyper)[2]
    return case, previous, h.compiled(o, hyper)(case["policy"], case, state, {})


def metrics_of(name):
    """{(seed, which hyper-parameters): metrics} of an objective."""
    hypers = enumerate(HYPER[name])
    return {(s, i): outcome(OBJECTIVES[name], s, x)[2][0][1] for i, x in hypers for s in SEEDS}


def caught(name, o, known):
    """Whether a mutant of an objective is told from it."""
    try:
        for (seed, i), metrics in known.items():
            hyper = HYPER[name][i]
            case, previous, ((loss, found), grad) = outcome(o, seed, hyper)
            h.assert_matches(
                (loss, grad), h.oracle_value_and_grad(ORACLES[name], case, previous, **hyper)
            )
            for key, value in metrics.items():
                np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-6)
    except Exception:
        return True
    return False


def fails_a_test(names, module, tree):
    """Whether a test about some objectives fails where their module is made from a tree."""
    root = Path(__file__).parents[1]
    with tempfile.TemporaryDirectory() as folder:
        for part in ("jaxalign", "tests"):
            shutil.copytree(root / part, Path(folder) / part)
        shutil.copy(root / "pyproject.toml", folder)
        here = Path(folder) / Path(module.__file__).relative_to(root)
        here.write_text(ast.unparse(tree))
        tests = sorted(root.glob("tests/objectives/test_*.py"))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-k", " or ".join(names)]
        done = subprocess.run(
            [*command, *(str(t.relative_to(root)) for t in tests)],
            cwd=folder,
            capture_output=True,
            text=True,
        )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.returncode == 1


def survivors(names, every=1):
    """(planted, what lived) over the modules of some objectives."""
    modules = {inspect.getmodule(OBJECTIVES[n].fn) for n in names}
    number, count, lived = itertools.count(), 0, []
    for module in sorted(modules, key=lambda m: m.__name__):
        tree = ast.parse(Path(module.__file__).read_text())
        chosen = [m for m in mutants(tree) if next(number) % every == 0]
        count += len(chosen)
        mine = [n for n in OBJECTIVES if inspect.getmodule(OBJECTIVES[n].fn) is module]
        known = {n: metrics_of(n) for n in mine if chosen}
        for line, what, mutant in chosen:
            try:
                found = objectives(mutant, module)
            except Exception:
                continue
            if any(caught(n, found[n], known[n]) for n in mine):
                continue
            if not fails_a_test(mine, module, mutant):
                lived.append(f"{Path(module.__file__).name}:{line}: {what}")
        jax.clear_caches()
    return count, lived


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="OBJECTIVE", help="none: all")
    parser.add_argument(
        "--every", type=int, default=1, help="plant only each Nth mistake of a file"
    )
    args = parser.parse_args()
    count, lived = survivors(args.names or list(OBJECTIVES), args.every)
    print(*lived, sep="\n")
    print(f"caught {count - len(lived)} of {count} planted")
    return 1 if lived else 0


if __name__ == "__main__":
    sys.exit(main())
