"""Every loss and its gradient keep their digits far from the reference and on long responses."""

import ast
from pathlib import Path

import numpy as np
import pytest
from lib.digits import ALIGNED, COARSE, DIGITS, FINE, errors, one_program
from oracles import HYPER

import jaxalign
from jaxalign.objectives import OBJECTIVES

PACKAGE = Path(jaxalign.__file__).parent


def assert_digits(name, hypers, ratios):
    for hyper in hypers:
        found = errors(name, hyper, ratios)
        allowed = ALIGNED.get(name, DIGITS)
        bad = {point: e for point, e in found.items() if max(e.unexplained) > allowed}
        assert not bad, (hyper, next(iter(bad.items())), len(bad))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_value_and_gradient_keep_their_digits_on_a_coarse_grid(name):
    assert_digits(name, one_program(name), COARSE)


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_form_keeps_its_digits_on_a_fine_grid(name):
    assert_digits(name, HYPER[name], FINE)


@pytest.mark.parametrize("divergence", ["forward_kl", "alpha"])
def test_f_dpo_keeps_its_digits_up_to_fifty_nats(divergence):
    found = errors("f_dpo", {"divergence": divergence}, (-50, -30, 8, 20, 50))
    assert max(max(e.unexplained) for e in found.values()) < DIGITS
    above = [e.found for (chosen, rejected, _), e in found.items() if chosen > 0 and rejected > 0]
    assert np.max(above) < DIGITS


def test_only_numerics_reads_the_expm1_of_jax():
    folders = (PACKAGE / "objectives", PACKAGE / "core", PACKAGE / "diagnostics")
    sources = [p for folder in folders for p in folder.rglob("*.py") if p.stem != "numerics"]
    bare = [
        f"{path.name}:{node.lineno}"
        for path in sources
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr == "expm1"
        and ast.unparse(node.value) in ("jnp", "jax.numpy", "jax.lax", "lax")
    ]
    assert not bare, "use numerics.expm1: the gradient of jax's loses its digits"
