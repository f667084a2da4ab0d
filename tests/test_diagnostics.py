"""Diagnostics against their formulas in float64, alone and through the evaluation of a model."""

import dataclasses
import functools
import math
import re

import helpers_step
import jax
import jax.numpy as jnp
import numpy as np
import oracle_diagnostics as oracle
import pytest
from helpers_objectives import LOGITS, REF_LOGITS, TARGETS, call, draw, layout, ragged_logp
from helpers_run import one_device

from jaxalign import stats
from jaxalign.data.examples import Examples, Report
from jaxalign.data.loader import Loader
from jaxalign.diagnostics import DIAGNOSTICS, diversity, problem
from jaxalign.diagnostics._common import diagnostic
from jaxalign.diagnostics.pairs import difficulty
from jaxalign.diagnostics.tokens import gini, others_entropy, topk_entropy, topk_mass
from jaxalign.evaluate import evaluator
from jaxalign.forward import Task
from jaxalign.objectives import OBJECTIVES
from jaxalign.settings import Mesh
from jaxalign.sharding import batch_shards, make_mesh
from jaxalign.stats import reduce_tokens
from jaxalign.types import Demos, Labeled, Pairs, select_rows

EXACT = functools.partial(pytest.approx, rel=1e-5, abs=1e-6)  # float32 sums


def averaged(name, **given):
    """A diagnostic over all examples of a case, as evaluation finishes it."""
    d = DIAGNOSTICS[name]
    return {k: d.finish(np.nanmean(np.asarray(v, np.float64), 0)) for k, v in d(**given).items()}


def responses(*tokens):
    """Per-token log-probabilities of some responses -> their statistics."""
    longest = max(map(len, tokens))
    padded = jnp.array([[*t, *[0.0] * (longest - len(t))] for t in tokens])
    mask = jnp.arange(longest) < jnp.array([[len(t)] for t in tokens])
    return reduce_tokens({"logp": padded}, mask)


def pairs(chosen, rejected):
    """Pairs of responses of one token each, by their probabilities."""
    return Pairs(*(responses(*[[math.log(p)] for p in row]) for row in (chosen, rejected)))


# Each on its own, beside its formula


@pytest.fixture(scope="module", params=range(3))
def case(request):
    drawn = draw(OBJECTIVES["dpo"], seed=request.param, b=64, t=9)
    drawn["logp"] = {k: ragged_logp(drawn[k], drawn["masks"]) for k in ("policy", "ref")}
    drawn["stats"] = {k: layout(OBJECTIVES["dpo"], drawn[k], drawn["masks"]) for k in drawn["logp"]}
    return drawn


def test_ranking_is_its_formula(case):
    got = averaged("ranking", policy=case["stats"]["policy"])
    assert got == EXACT(oracle.ranking(case["logp"]["policy"]))


@pytest.mark.parametrize("beta", [0.02, 0.1, 1.0])
def test_difficulty_is_its_formula(case, beta):
    got = averaged("difficulty", ref=case["stats"]["ref"], beta=beta)
    assert got == EXACT(oracle.difficulty(case["logp"]["ref"], beta))


@pytest.mark.parametrize("name", ["three_d", "shift"])
def test_a_comparison_with_the_reference_is_its_formula(case, name):
    got = averaged(name, **case["stats"])
    assert got == EXACT(getattr(oracle, name)(**case["logp"]))


def test_calibration_is_its_formula(case):
    margins = np.random.default_rng(0).normal(0.3, 1.5, 64)
    got = averaged(
        "calibration", policy=case["stats"]["policy"], margins=jnp.asarray(margins, jnp.float32)
    )
    assert got == EXACT(oracle.calibration(case["logp"]["policy"], margins))


def test_entanglement_is_its_formula():
    rng = np.random.default_rng(0)
    chosen, rejected = ({"a": rng.normal(size=(3, 4)), "b": rng.normal(size=5)} for _ in range(2))
    as_jax = [jax.tree.map(jnp.asarray, g) for g in (chosen, rejected)]
    got = DIAGNOSTICS["entanglement"](gradients=dict(zip(Pairs.ROWS, as_jax, strict=True)))
    flat = [np.concatenate([g["a"].ravel(), g["b"]]) for g in (chosen, rejected)]
    assert {k: float(v) for k, v in got.items()} == EXACT(oracle.entanglement(*flat))


@pytest.mark.parametrize("vocab", [7, 30, 60_000])
def test_diversity_is_its_formula(vocab):
    rng = np.random.default_rng(vocab)
    answers = [rng.integers(0, vocab, n).tolist() for n in (0, 1, 2, 12, 40)]
    assert diversity(answers, vocab) == pytest.approx(oracle.diversity(answers, vocab), rel=1e-9)


@pytest.mark.parametrize("vocab", [4, 10, 50])
def test_the_likeliest_tokens_are_their_formula(vocab):
    z = np.random.default_rng(vocab).normal(size=(6, vocab)) * 3
    got = [s(jnp.asarray(z, jnp.float32), jnp.zeros(6, int)) for s in (topk_mass, topk_entropy)]
    want = oracle.topk({"y": [row[None] for row in z]})
    assert float(got[0].mean()) == EXACT(want["topk/y_mass"])
    assert float(got[1].mean()) == EXACT(want["topk/y_entropy"])


# Worked values


def test_a_pair_is_ranked_by_sum_and_by_token():
    policy = Pairs(responses([-1.0, -1.0, -1.0]), responses([-2.0]))
    got = averaged("ranking", policy=policy)
    assert got == {"ranking/accuracy": 0.0, "ranking/accuracy_per_token": 1.0}


def test_a_tie_is_not_ranked_right():
    got = averaged("ranking", policy=pairs([0.2], [0.2]))
    assert set(got.values()) == {0.0}


def test_odds_of_three_against_need_a_win_rate_of_three_quarters():
    ref = pairs([0.1], [0.9])  # c = log 9, so beta c = log 3
    got = averaged("difficulty", ref=ref, beta=0.5)
    assert got["difficulty/win_rate"] == EXACT(0.75)
    assert got["difficulty/threshold"] == EXACT(0.28768207)
    assert got["difficulty/reference"] == 0.0


@pytest.mark.parametrize("alpha, right", [(0.74, 0.0), (0.76, 1.0), (1.0, 1.0), (0.0, 0.0)])
def test_an_optimal_policy_ranks_right_where_annotators_agree_enough(alpha, right):
    values = difficulty.fn(pairs([0.1], [0.9]), 0.5, alpha=alpha)
    assert float(values["difficulty/idealised"][0]) == right


def test_a_pair_is_ranked_right_just_where_its_dpo_loss_is_below_the_threshold(case):
    policy, ref = case["stats"]["policy"], case["stats"]["ref"]
    loss, _ = OBJECTIVES["dpo"].bind(beta=0.3)(policy=policy, ref=ref)
    threshold = difficulty.fn(ref, 0.3)["difficulty/threshold"]
    right = DIAGNOSTICS["ranking"](policy=policy)["ranking/accuracy"]
    assert 0 < right.sum() < len(right)
    np.testing.assert_array_equal(loss.terms[0].total < threshold, right > 0)


def test_drop_degradation_and_dispersion_of_a_pair():
    got = averaged("three_d", policy=pairs([0.1], [0.05]), ref=pairs([0.3], [0.2]))
    assert got == EXACT(
        {
            "three_d/drop_chosen": 1.0,
            "three_d/drop_rejected": 1.0,
            "three_d/degradation": math.log(2),
            "three_d/dispersion": math.log(0.15 / 0.5),
        }
    )


@pytest.mark.parametrize(
    "values, want", [([1, 1, 1, 1], 0.0), ([0, 0, 0, 1], 0.75), ([4, 1, 3, 2], 0.25), ([5], 0.0)]
)
def test_gini_of_a_few_values(values, want):
    # What is masked does not count, whatever it is.
    padded = jnp.array([9.0, *values, 7.0])
    mask = jnp.array([0.0, *[1.0] * len(values), 0.0])
    assert float(gini(padded, mask)) == EXACT(want)


def test_gini_of_nothing_moved_is_no_value():
    y = responses([-1.0, -2.0])
    values = DIAGNOSTICS["shift"](policy=Demos(y), ref=Demos(y))
    assert np.isnan(values["shift/response_gini"]).all()
    assert float(values["shift/response"][0]) == 0.0


def of_logits(name, z, z_ref):
    """A diagnostic of one response of logits [T, V] beside its reference's."""
    z, z_ref = (jnp.asarray(x, jnp.float32) for x in (z, z_ref))
    y = jnp.zeros(len(z), jnp.int32)
    token = {s.name: s(z, y, z_ref)[None] for s in (stats.logp, *DIAGNOSTICS[name].needs)}
    response = Demos(reduce_tokens(token, jnp.ones((1, len(z)), bool)))
    return {k: float(v[0]) for k, v in DIAGNOSTICS[name](policy=response, ref=response).items()}


def test_the_shift_of_a_few_logits():
    got = of_logits("logit_shift", [[1, 2, -3, 4], [1, 1, 1, 1]], [[1, 2, -3, 0], [0, 0, 0, 2]])
    assert got == EXACT(
        {
            "logit_shift/response": 8.0,
            "logit_shift/response_token": 4.0,
            "logit_shift/response_gini": 0.75 / 2,
            "logit_shift/response_logits_gini": 0.25 / 2,
        }
    )


def test_the_gini_of_logits_that_have_not_moved_is_no_value():
    got = of_logits("logit_shift", [[1, 2]], [[1, 2]])
    assert got["logit_shift/response"] == 0.0
    assert np.isnan(got["logit_shift/response_gini"])


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_shift_of_a_large_vocabulary_is_its_formula(scale):
    z, z_ref = np.random.default_rng(0).normal(size=(2, 3, 3000)) * scale
    want = oracle.logit_shift({"response": [z]}, {"response": [z_ref]})
    assert of_logits("logit_shift", z, z_ref) == pytest.approx(want, rel=1e-5)


def test_the_ten_likeliest_of_twenty_equal_tokens():
    z, y = jnp.zeros((1, 20)), jnp.array([0])
    token = {"logp": jnp.zeros((1, 2))}
    token |= {s.name: jnp.full((1, 2), s(z, y)[0]) for s in (topk_mass, topk_entropy)}
    got = averaged("topk", policy=Demos(reduce_tokens(token, jnp.array([[True, False]]))))
    assert got == EXACT(
        {
            "topk/response_mass": 0.5,
            "topk/response_entropy": 0.5 * math.log(20),
            "topk/response_renormalised": math.log(10),
        }
    )


def test_confidence_of_three_quarters_and_half_of_them_right():
    margins = jnp.array([math.log(3), -math.log(3)])
    policy = pairs([0.95, 0.95], [0.5, 0.96])
    got = averaged("calibration", policy=policy, margins=margins)
    assert got == EXACT({"calibration/reward": 0.25, "calibration/likelihood": 0.45})


def test_a_confidence_of_one_is_in_the_last_bin():
    # Wrong on both counts: the reverse margin, and a tie.
    got = averaged("calibration", policy=pairs([1.0], [1.0]), margins=jnp.array([-200.0]))
    assert got == EXACT({"calibration/reward": 1.0, "calibration/likelihood": 1.0})


@pytest.mark.parametrize("chosen, rejected", [(1.0, 2.0), (2.0, 1.0)])
def test_rho_divides_by_the_smaller_norm_on_either_side(chosen, rejected):
    gradients = {"chosen": jnp.array([chosen, 0.0]), "rejected": jnp.array([rejected, 0.0])}
    got = DIAGNOSTICS["entanglement"](gradients=gradients)
    assert float(got["entanglement/rho"]) == 2.0
    assert float(got["entanglement/cosine"]) == 1.0


def test_n_grams_of_one_answer():
    got = diversity([[1, 2, 1, 2]], 4)
    assert got["distinct/1"] == 0.5
    assert got["distinct/2"] == pytest.approx(2 / 3)
    assert got["distinct/4"] == 1.0
    assert got["ead/1"] == pytest.approx(2 / (4 * (1 - 0.75**4)))
    assert "distinct/5" not in got
    assert diversity([], 4) == {}


def test_dynamic_target_is_the_worked_value_of_bnf():
    """Of the sheet's example with four tokens; the sum is that of `bnf_pair`'s exact loss."""

    def build(logits):
        rows = []
        for row, z in logits.items():
            z, y = jnp.asarray(z, jnp.float32), jnp.asarray(TARGETS[row])
            needs = (stats.logp, stats.log_complement, others_entropy)
            pad = (0, 3 - len(y))
            token = {s.name: jnp.pad(s(z, y), pad)[None] for s in needs}
            rows.append(reduce_tokens(token, jnp.arange(3)[None] < len(y)))
        return Pairs(*rows)

    got = averaged("dynamic_target", policy=build(LOGITS), ref=build(REF_LOGITS))
    want = {"chosen": 0.8611720893012, "rejected": -1.117230720706, "loss": -0.256058631404336}
    assert got == EXACT({f"dynamic_target/{k}": v for k, v in want.items()})


# Through the evaluation of a model

N = 11
ONE = one_device()
ALL = tuple(DIAGNOSTICS)


@functools.cache
def model_case():
    model = helpers_step.small_model(ONE)
    params = [helpers_step.parameters(model, seed) for seed in (0, 1)]
    items = helpers_step.some_examples("Pairs", N)
    return params, Examples(items, "Pairs", Report(N, {}, 0, {}, {}))


@functools.cache
def evaluated(batch_size, microbatches=1, chunks=1, mesh=ONE, names=ALL, objective="dpo", first=N):
    params, examples = model_case()
    examples = dataclasses.replace(examples, items=examples.items[:first])
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
        seed=0,
    )
    task = Task(OBJECTIVES[objective], {}, model.forward)
    with jax.set_mesh(mesh):
        return evaluator(task, mesh, ref_params, diagnostics=names)(
            params, None, loader.sequential()
        )


def dense_logits(params):
    """{row: logits [T_i, V] of each example}, and {row: their targets}."""
    model = helpers_step.small_model(ONE)
    items = model_case()[1].items
    sequences = [(e.prompt, y) for e in items for y in e.responses]
    ids = np.zeros((len(sequences), max(len(p) + len(y) for p, y in sequences)), np.int32)
    for row, (p, y) in zip(ids, sequences, strict=True):
        row[: len(p) + len(y)] = [*p, *y]
    at = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    hidden, head = jax.jit(model.forward)(params, ids, at, np.ones_like(ids), np.zeros_like(ids))
    z = np.asarray(hidden @ head, np.float64)
    scored = [x[len(p) - 1 : len(p) + len(y) - 1] for x, (p, y) in zip(z, sequences, strict=True)]
    targets = [y for _, y in sequences]
    return tuple({r: x[i::2] for i, r in enumerate(Pairs.ROWS)} for x in (scored, targets))


@functools.cache
def dense():
    """Every diagnostic of the model case by its oracle, from dense logits; all data the probe."""
    (params, ref_params), examples = model_case()
    logits, targets = dense_logits(params)
    ref_logits, _ = dense_logits(ref_params)

    def logp(z, y):
        return z[np.arange(len(y)), y] - np.logaddexp.reduce(z, -1)

    policy, ref = (
        {r: [logp(z, y) for z, y in zip(x[r], targets[r], strict=True)] for r in Pairs.ROWS}
        for x in (logits, ref_logits)
    )
    margins = [
        0.1 * (policy["chosen"][i] - ref["chosen"][i]).sum()
        - 0.1 * (policy["rejected"][i] - ref["rejected"][i]).sum()
        for i in range(N)
    ]

    model, needs = helpers_step.small_model(ONE), OBJECTIVES["dpo"].needs

    def average(params, row):
        stats = helpers_step.dense_stats(model, params, examples.items, needs)
        return getattr(select_rows(Pairs, stats), row).logp.mean()

    gradient = jax.jit(jax.grad(average), static_argnums=1)
    gradients = [gradient(params, row) for row in Pairs.ROWS]
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
        {"batch_size": 11},
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
        (["rankin"], "dpo", "cached", r"^no diagnostic 'rankin'; did you mean 'ranking'\?$"),
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
        DIAGNOSTICS["calibration"](policy=pairs([0.5], [0.5]))


def test_every_diagnostic_names_itself_in_its_metrics_and_has_a_source():
    for name, d in DIAGNOSTICS.items():
        assert d.source
        assert d.fn.__doc__
        assert dataclasses.is_dataclass(d)
        assert all(k.startswith(f"{name}/") for k in dense() if k.split("/")[0] == name)
    assert {k.split("/")[0] for k in dense()} == set(DIAGNOSTICS)
