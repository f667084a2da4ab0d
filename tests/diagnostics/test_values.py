"""Diagnostics against their formulas in float64."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lib import diagnostics as oracle
from lib.objectives import LOGITS, REF_LOGITS, TARGETS, draw, layout, ragged_logp

from jaxalign.core import layouts, stats
from jaxalign.core.stats import reduce_tokens
from jaxalign.core.types import Demos, Pairs
from jaxalign.diagnostics import DIAGNOSTICS, diversity
from jaxalign.diagnostics.pairs import difficulty
from jaxalign.diagnostics.tokens import gini, others_entropy, topk_entropy, topk_mass
from jaxalign.objectives import OBJECTIVES

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
    got = DIAGNOSTICS["entanglement"](
        gradients=dict(zip(layouts.PAIRS.responses, as_jax, strict=True))
    )
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
    assert float(values["difficulty/idealized"][0]) == right


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
            "topk/response_renormalized": math.log(10),
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
    """On `LOGITS`, a vocabulary of four tokens; the loss is the one of `bnf_pair`."""

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
