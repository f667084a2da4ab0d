"""Diagnostics through the evaluation of a model, against dense logits; and what is refused."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest
from lib import diagnostics as oracle
from lib import steps as helpers_step
from lib.objectives import call, draw
from lib.runs import one_device

from jaxalign.core import layouts
from jaxalign.core.sharding import batch_shards, make_mesh
from jaxalign.core.types import Labeled, Pairs, select_rows
from jaxalign.data.loader import Loader
from jaxalign.data.store import Examples
from jaxalign.diagnostics import DIAGNOSTICS, problem
from jaxalign.diagnostics._common import diagnostic
from jaxalign.objectives import OBJECTIVES
from jaxalign.run.evaluate import evaluator
from jaxalign.settings import Mesh
from jaxalign.update.forward import Task
from jaxalign.update.step import Fixed

N = 11
ONE = one_device()
ALL = tuple(DIAGNOSTICS)


@functools.cache
def model_case():
    model = helpers_step.small_model(ONE)
    params = [helpers_step.parameters(model, seed) for seed in (0, 1)]
    items = helpers_step.some_examples(layouts.PAIRS, N)
    return params, Examples.of(items)


@functools.cache
def evaluated(batch_size, microbatches=1, chunks=1, mesh=ONE, names=ALL, objective="dpo", first=N):
    params, examples = model_case()
    examples = Examples.of(examples[:first])
    model = helpers_step.small_model(mesh)
    shardings = jax.tree.map(lambda x: x.sharding, model.abstract)
    params, ref_params = (
        jax.device_put(jax.tree.map(np.asarray, tree), shardings) for tree in params
    )
    loader = Loader(
        examples,
        batch_size=batch_size,
        microbatches=microbatches,
        shards=batch_shards(mesh),
        chunks=chunks,
        row_length=64,
        shapes=2,
        seed=0,
    )
    task = Task(OBJECTIVES[objective], {}, model.forward)
    with jax.set_mesh(mesh):
        return evaluator(task, mesh, Fixed(reference=ref_params), names)(
            params, None, loader.sequential()
        )


def dense_logits(params):
    """{row: logits [T_i, V] of each example}, and {row: their targets}."""
    model = helpers_step.small_model(ONE)
    items = model_case()[1]
    sequences = [(e.prompt, y) for e in items for y in (b.ids for b in e.branches)]
    ids = np.zeros((len(sequences), max(len(p) + len(y) for p, y in sequences)), np.int32)
    for row, (p, y) in zip(ids, sequences, strict=True):
        row[: len(p) + len(y)] = [*p, *y]
    at = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    hidden, head, *_ = jax.jit(model.forward)(
        params, ids, at, np.ones_like(ids), np.zeros_like(ids)
    )
    z = np.asarray(hidden @ head.matrix, np.float64)
    scored = [x[len(p) - 1 : len(p) + len(y) - 1] for x, (p, y) in zip(z, sequences, strict=True)]
    targets = [y for _, y in sequences]
    return tuple(
        {r: x[i::2] for i, r in enumerate(layouts.PAIRS.responses)} for x in (scored, targets)
    )


@functools.cache
def dense():
    """Every diagnostic of the model case by its oracle, from dense logits; all data the probe."""
    (params, ref_params), examples = model_case()
    logits, targets = dense_logits(params)
    ref_logits, _ = dense_logits(ref_params)

    def logp(z, y):
        return z[np.arange(len(y)), y] - np.logaddexp.reduce(z, -1)

    policy, ref = (
        {
            r: [logp(z, y) for z, y in zip(x[r], targets[r], strict=True)]
            for r in layouts.PAIRS.responses
        }
        for x in (logits, ref_logits)
    )
    margins = [
        0.1 * (policy["chosen"][i] - ref["chosen"][i]).sum()
        - 0.1 * (policy["rejected"][i] - ref["rejected"][i]).sum()
        for i in range(N)
    ]

    model, needs = helpers_step.small_model(ONE), OBJECTIVES["dpo"].needs

    def average(params, row):
        stats = helpers_step.dense_stats(model, params, examples, needs)
        return getattr(select_rows(Pairs, stats), row).logp.mean()

    gradient = jax.jit(jax.grad(average), static_argnums=1)
    gradients = [gradient(params, row) for row in layouts.PAIRS.responses]
    flat = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)]) for g in gradients]
    return (
        oracle.ranking(policy)
        | oracle.difficulty(ref, 0.1)
        | oracle.three_d(policy, ref)
        | oracle.shift(policy, ref)
        | oracle.logit_shift(logits, ref_logits)
        | oracle.topk(logits)
        | oracle.dynamic_target(logits, targets, ref)
        | oracle.calibration(policy, margins)
        | oracle.entanglement(*flat)
    )


def of_diagnostics(metrics):
    return {k: v for k, v in metrics.items() if k.split("/")[0] in DIAGNOSTICS}


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({"batch_size": 11}, marks=pytest.mark.slow),
        {"batch_size": 12, "microbatches": 2, "chunks": 3},
        pytest.param({"batch_size": 16, "microbatches": 4}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_diagnostics_of_a_model_are_their_formulas_on_dense_logits(how):
    got = of_diagnostics(evaluated(**how))
    assert len(got) > 25
    # 1e-4: float32 logits
    assert got == pytest.approx(dense(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("batch_size", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_diagnostics_of_examples_are_the_same_whatever_the_batch_size(batch_size):
    names = ALL[:-1]
    got = of_diagnostics(evaluated(batch_size, names=names))
    want = {k: v for k, v in dense().items() if not k.startswith("entanglement")}
    assert got == pytest.approx(want, rel=1e-4, abs=1e-5)


@pytest.mark.slow
def test_gradients_are_of_the_first_batch():
    got, want = (evaluated(4, names=("entanglement",), first=first) for first in (N, 4))
    assert of_diagnostics(got) == pytest.approx(of_diagnostics(want), rel=1e-6)


@pytest.mark.slow
def test_diagnostics_are_the_same_on_a_mesh():
    mesh = make_mesh(Mesh(data=2, fsdp=2, tensor=2))
    got = of_diagnostics(evaluated(16, 2, mesh=mesh))
    assert got == pytest.approx(dense(), rel=1e-4, abs=1e-5)


def test_the_metrics_of_the_objective_are_as_without_diagnostics():
    without = evaluated(11, names=())
    assert {k: v for k, v in evaluated(11).items() if k in without} == pytest.approx(
        without, rel=1e-6
    )
    assert of_diagnostics(without) == {}


def test_an_objective_without_a_reference_is_compared_with_the_one_it_is_given():
    names = ("shift", "logit_shift", "three_d")
    got = of_diagnostics(evaluated(11, names=names, objective="simpo"))
    assert got == pytest.approx({k: dense()[k] for k in got}, rel=1e-4, abs=1e-5)
    assert len(got) == 18


@pytest.mark.parametrize("name", [n for n, o in OBJECTIVES.items() if o.data is Pairs])
def test_every_paired_objective_has_the_margins_that_calibration_reads(name):
    o = OBJECTIVES[name]
    metrics = call(o, draw(o))[1]
    assert metrics["rewards/margins"].shape == (4,)


# What is wrong is said


@pytest.mark.parametrize(
    "names, objective, ref, message",
    [
        (
            ["rankin"],
            "dpo",
            "cached",
            r"^no diagnostic 'rankin'; did you mean 'ranking'\? known: calib",
        ),
        (
            ["topk", "zzz"],
            "dpo",
            "cached",
            r"^no diagnostic 'zzz'; known: calibration, difficulty, ",
        ),
        (
            ["ranking"],
            "kto",
            "cached",
            "^'ranking' reads Pairs, and 'kto' has Mismatched; leave it",
        ),
        (["shift"], "simpo", None, "^'shift' compares with a reference, and 'simpo' has none; "),
        (
            ["difficulty"],
            "slpo",
            "cached",
            "^'difficulty' reads the `beta` of an objective with a ref",
        ),
        (["difficulty"], "simpo", "cached", "'simpo' has none"),
        (["logit_shift"], "simpo", None, "^'logit_shift' compares with a reference, and 'simpo'"),
        (
            ["logit_shift"],
            "dpo",
            "cached",
            "^'logit_shift' reads the reference's logits, which are",
        ),
    ],
)
def test_a_diagnostic_that_does_not_fit_is_refused(names, objective, ref, message):
    assert re.search(message, problem(names, OBJECTIVES[objective], ref=ref))


@pytest.mark.parametrize(
    "names, objective, ref",
    [
        (ALL, "dpo", "live"),
        (["shift", "topk"], "kto", "cached"),
        (["logit_shift"], "sft", "live"),
        (["topk"], "sft", None),
        ([], "sft", None),
    ],
)
def test_a_diagnostic_that_fits_is_not(names, objective, ref):
    assert problem(names, OBJECTIVES[objective], ref=ref) == ""


def test_a_diagnostic_asks_for_what_evaluation_has():
    def lengths(policy, length):
        """Documented."""

    with pytest.raises(TypeError, match=r"lengths: inputs are .*, got \['length'\]"):
        diagnostic(Labeled, source="a test")(lengths)


def test_a_diagnostic_says_what_it_was_not_given():
    with pytest.raises(TypeError, match=r"'calibration' reads \['margins'\]; got \['policy'\]"):
        DIAGNOSTICS["calibration"](policy=call)


def test_every_diagnostic_names_itself_in_its_metrics_and_has_a_source():
    for name, d in DIAGNOSTICS.items():
        assert d.source
        assert d.fn.__doc__
        assert dataclasses.is_dataclass(d)
        assert all(k.startswith(f"{name}/") for k in dense() if k.split("/")[0] == name)
    assert {k.split("/")[0] for k in dense()} == set(DIAGNOSTICS)
