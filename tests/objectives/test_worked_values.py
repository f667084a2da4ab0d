"""Every objective against its float64 oracle, the worked values, and closed-form anchors."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lib.objectives import (
    assert_matches,
    call,
    draw,
    logit_grads,
    oracle_columns,
    oracle_value_and_grad,
    ragged_logp,
    rows_of,
    value_and_grad,
)
from lib.worked import CHOSEN, KL, LP, PAIR, REF_KL, REF_PAIR, RP, at_reference, rows, worked
from oracles import HYPER, ORACLES, SURROGATES, UNDIRECTED, WORKED
from oracles.worked import values

from jaxalign.core.stats import reduce_tokens
from jaxalign.objectives import OBJECTIVES
from jaxalign.objectives.bco import ClassMeans

ALL = pytest.mark.parametrize("name", OBJECTIVES)


def test_every_objective_has_an_oracle():
    assert set(ORACLES) == set(OBJECTIVES)


CASES = given(
    seed=st.integers(0, 2**31), scale=st.sampled_from([0.1, 2.0, 4.0]), pick=st.integers(0, 9)
)


@ALL
@settings(max_examples=8, deadline=None, derandomize=True)
@CASES
def test_value_and_gradient_equal_the_oracle(name, seed, scale, pick):
    assert_agrees(name, seed, scale, pick)


@pytest.mark.slow
@ALL
@settings(max_examples=100, deadline=None, derandomize=True)
@CASES
def test_value_and_gradient_equal_the_oracle_on_a_hundred_batches(name, seed, scale, pick):
    assert_agrees(name, seed, scale, pick)


def assert_agrees(name, seed, scale, pick):
    o, hyper = OBJECTIVES[name], HYPER[name][pick % len(HYPER[name])]
    case = draw(o, seed, scale=scale)
    state = previous = None
    if o.init_state is not None:
        previous = draw(o, seed + 1, scale=scale)
        state = call(o, previous, **hyper)[2]
    ours = value_and_grad(o, case, state, **hyper)
    assert_matches(ours, oracle_value_and_grad(ORACLES[name], case, previous, **hyper))


@pytest.mark.parametrize("name", [n for n in OBJECTIVES if n not in SURROGATES])
def test_oracle_gradient_equals_differences_of_its_value(name):
    o, rng = OBJECTIVES[name], np.random.default_rng(0)
    case = draw(o, 3)
    policy, ref = (ragged_logp(case[k], case["masks"]) for k in ("policy", "ref"))
    columns = oracle_columns(case)
    policy = {r: [y - 0.5 for y in ys] for r, ys in policy.items()}
    value, grad = ORACLES[name](policy, ref, columns)
    row = rows_of(o)[0]
    direction = [rng.normal(size=len(y)) for y in policy[row]]

    def moved(step):
        there = [y + step * d for y, d in zip(policy[row], direction, strict=True)]
        return ORACLES[name](policy | {row: there}, ref, columns)[0]

    slope = sum(g @ d for g, d in zip(grad[row], direction, strict=True))
    rounding = 1e-16 * abs(value) / 1e-5  # of the two values that are subtracted
    measured = (moved(1e-5) - moved(-1e-5)) / 2e-5
    np.testing.assert_allclose(measured, slope, rtol=1e-7, atol=1e-12 + rounding)


def test_worked_values_are_those_of_plain_formulas():
    made = [values(name, **hyper) for name, hyper, *_ in WORKED]
    np.testing.assert_allclose(made, [row[2:] for row in WORKED], rtol=2e-12)


@pytest.mark.parametrize(
    ("name", "hyper", "loss", "chosen", "rejected"), WORKED, ids=[w[0] for w in WORKED]
)
def test_worked_value_of_a_pair(name, hyper, loss, chosen, rejected):
    value, grad = worked(OBJECTIVES[name], PAIR, REF_PAIR, **hyper)
    # 1e-6: the table has 13 digits, float32 sums of seven tokens have 6.
    np.testing.assert_allclose(value, loss, rtol=1e-6)
    np.testing.assert_allclose(grad["chosen"], [chosen], rtol=2e-6)
    np.testing.assert_allclose(grad["rejected"], [rejected], rtol=2e-6)


def test_worked_value_of_sft():
    policy = {"response": [CHOSEN, [-1.0, -2.6]]}
    value, grad = worked(OBJECTIVES["sft"], policy, policy)
    np.testing.assert_allclose(value, 2.271428571429, rtol=1e-6)
    np.testing.assert_allclose(grad["response"], [-1 / 7, -1 / 7], rtol=1e-6)


def test_worked_value_of_kto():
    value, grad = worked(
        OBJECTIVES["kto"],
        {"response": [[x] for x in LP], "mismatched": [[x] for x in KL]},
        {"response": [[x] for x in RP], "mismatched": [[x] for x in REF_KL]},
        {"label": jnp.array([1.0, 0.0, 0.0, 1.0]), "weight": jnp.ones(4)},
        undesirable_weight=1.5,
    )
    np.testing.assert_allclose(value, 0.5984589061257, rtol=1e-6)
    expected = [-0.006248086328, 0.009361828756, 0.009344072099, -0.006232805042]
    np.testing.assert_allclose(grad["response"], expected, rtol=2e-6)


@pytest.mark.parametrize(
    ("n", "shift", "loss", "expected"),
    [
        (
            4,
            0.0225,
            0.6528491062292,
            [-0.01220318081, 0.01210950211, 0.01185993529, -0.01176646875],
        ),
        (3, 0.005, 0.6612085102107, [-0.01612519063, 0.01629172994, 0.0159587595]),
    ],
    ids=["balanced", "imbalanced"],
)
def test_worked_value_of_bco(n, shift, loss, expected):
    o = OBJECTIVES["bco"]
    policy, ref = {"response": [[x] for x in LP[:n]]}, {"response": [[x] for x in RP[:n]]}
    columns = {"label": jnp.array([1.0, 0.0, 0.0, 1.0])[:n], "weight": jnp.ones(n)}
    values, masks = rows(**policy)
    stats = o.data(reduce_tokens({"logp": values["response"]}, masks["response"]))
    ref_stats = o.data(reduce_tokens({"logp": rows(**ref)[0]["response"]}, masks["response"]))
    state = o.bind()(policy=stats, ref=ref_stats, batch=columns, state=o.init_state())[2]
    value, grad = worked(o, policy, ref, columns, state)
    np.testing.assert_allclose(state.shift, shift, rtol=2e-5)
    np.testing.assert_allclose(value, loss, rtol=1e-6)
    np.testing.assert_allclose(grad["response"], expected, rtol=2e-6)


def test_worked_value_of_bco_pair():
    state = ClassMeans(mean=jnp.array([-0.04, 0.07]), seen=jnp.ones(2))
    columns = {"weight": jnp.ones(1)}
    value, grad = worked(OBJECTIVES["bco_pair"], PAIR, REF_PAIR, columns, state)
    np.testing.assert_allclose(value, 1.33205051582, rtol=1e-6)
    np.testing.assert_allclose(grad["chosen"], [-0.04862534650976], rtol=2e-6)
    np.testing.assert_allclose(grad["rejected"], [0.04862534650976], rtol=2e-6)


BNF_GRAD = {
    "chosen": [
        [-0.1870696968, 0.08871337993, 0.03263582863, 0.06572048827],
        [0.05533105095, -0.16710967, 0.03708951262, 0.07468910645],
        [0.07864669413, 0.03197535967, 0.05271845563, -0.1633405094],
    ],
    "rejected": [
        [-0.07469038243, -0.1504079598, 0.2586588944, -0.03356055217],
        [0.2687895382, -0.05159002736, -0.1402362339, -0.07696327697],
    ],
}


@pytest.mark.parametrize("row", ["chosen", "rejected"])
def test_bnf_gradient_is_that_of_the_whole_vocabulary(row):
    _, grad = logit_grads("bnf_pair")
    np.testing.assert_allclose(grad[row], BNF_GRAD[row], rtol=3e-6)


@pytest.mark.parametrize(
    ("name", "hyper", "value"),
    [
        ("dpo", {"label_smoothing": 0.3}, np.log(2)),
        ("kto", {}, 0.5),
        ("bco", {}, np.log(2)),
        ("bco_pair", {}, 2 * np.log(2)),
    ],
)
def test_loss_at_the_reference_is_known(name, hyper, value):
    _, out = at_reference(name, **hyper)
    np.testing.assert_allclose(out[0].terms[0].total, value, rtol=1e-6)


def test_slpo_at_the_reference_is_zero_when_no_mass_moves():
    _, out = at_reference("slpo", alpha=0.0)
    np.testing.assert_allclose(out[0].terms[0].total, 0.0, atol=1e-12)


def test_bnf_at_the_reference_is_likelihood_minus_unlikelihood():
    case, out = at_reference("bnf_pair")
    policy = ragged_logp(case["policy"], case["masks"])
    expected = [y.mean() - w.mean() for w, y in zip(*policy.values(), strict=True)]
    np.testing.assert_allclose(out[0].terms[0].total, expected, rtol=1e-5)


PAIRED = [
    n for n, o in OBJECTIVES.items() if o.layout.responses[0] == "chosen" and "key" not in o.inputs
]


@pytest.mark.parametrize("name", [n for n in PAIRED if n not in UNDIRECTED])
def test_a_pair_pulls_chosen_up_and_pushes_rejected_down(name):
    case = draw(OBJECTIVES[name], 0)
    case["policy"] = case["ref"]
    _, grad = value_and_grad(OBJECTIVES[name], case)
    mask = case["masks"]
    assert (grad["chosen"][mask["chosen"]] < 0).all()
    assert (grad["rejected"][mask["rejected"]] > 0).all()


def test_cdpo_gradient_vanishes_where_the_odds_equal_the_noise():
    margin = np.log(0.9 / 0.1) / 0.1
    policy = {"chosen": [[-1.0]], "rejected": [[-1.0 - margin]]}
    ref = {"chosen": [[-1.0]], "rejected": [[-1.0]]}
    _, grad = worked(OBJECTIVES["dpo"], policy, ref, label_smoothing=0.1)
    np.testing.assert_allclose(grad["chosen"], 0.0, atol=1e-7)


def test_kto_reference_point_is_clamped_after_the_mean():
    case = draw(OBJECTIVES["kto"], 0)
    case["ref"] = case["ref"] | {"mismatched": case["policy"]["mismatched"] + 1.0}
    np.testing.assert_array_equal(call(OBJECTIVES["kto"], case)[1]["kl"], 0.0)


def test_kto_gradient_keeps_its_digits_where_it_saturates():
    policy = {"response": [[-300.0]], "mismatched": [[-1.0]]}
    ref = {"response": [[-100.0]], "mismatched": [[-1.0]]}
    columns = {"label": jnp.ones(1), "weight": jnp.ones(1)}
    _, grad = worked(OBJECTIVES["kto"], policy, ref, columns)
    expected = -0.1 / (1 + np.exp(20.0)) / (1 + np.exp(-20.0))
    np.testing.assert_allclose(grad["response"], expected, rtol=1e-5)


def batch_of(labels, weights):
    return {"label": jnp.asarray(labels, jnp.float32), "weight": jnp.asarray(weights, jnp.float32)}


def bco_state(log_ratios, labels, weights, state=None, **hyper):
    o = OBJECTIVES["bco"]
    n = len(log_ratios)
    mask = jnp.ones((n, 1), bool)
    policy = o.data(reduce_tokens({"logp": jnp.asarray(log_ratios, jnp.float32)[:, None]}, mask))
    ref = o.data(reduce_tokens({"logp": jnp.zeros((n, 1))}, mask))
    state = o.init_state() if state is None else state
    return o.bind(beta=1.0, **hyper)(
        policy=policy, ref=ref, batch=batch_of(labels, weights), state=state
    )[2]


def test_bco_shift_averages_classes_not_examples():
    state = bco_state([1.0, 3.0, 4.0, -2.0], [1, 1, 1, 0], [1, 1, 1, 1])
    np.testing.assert_allclose(state.shift, (8 / 3 - 2.0) / 2, rtol=1e-6)


def test_bco_shift_moves_by_one_minus_decay():
    first = bco_state([0.07, -0.04, -0.08, 0.14], [1, 0, 0, 1], [1] * 4)
    second = bco_state([0.5, -0.1], [1, 0], [1, 1], first)
    np.testing.assert_allclose(second.shift, 0.04025, rtol=1e-5)


def test_bco_keeps_the_mean_of_a_class_that_a_batch_lacks():
    first = bco_state([1.0, -3.0], [1, 0], [1, 1])
    second = bco_state([2.0, 2.0], [1, 1], [1, 1], first)
    np.testing.assert_allclose(second.mean, [-3.0, 1.1], rtol=1e-6)


def test_bco_shift_before_a_class_is_seen_is_the_mean_of_the_other():
    np.testing.assert_allclose(bco_state([1.0, 3.0], [1, 1], [1, 1]).shift, 2.0)


def test_bco_first_batch_of_a_late_class_sets_its_mean():
    first = bco_state([1.0, 3.0], [1, 1], [1, 1])
    second = bco_state([-4.0, -2.0], [0, 0], [1, 1], first)
    np.testing.assert_allclose(second.mean, [-3.0, 2.0])


def test_bco_state_ignores_padding():
    state = bco_state([1.0, 99.0], [1, 0], [1, 0])
    np.testing.assert_array_equal(state.seen, [0.0, 1.0])


def test_bnf_weight_of_a_rare_token_is_one_at_the_reference():
    tokens = {"response": [[-18.0, -40.0, -1e-7]]}
    _, grad = worked(OBJECTIVES["bnf"], tokens, tokens, {"label": jnp.ones(1)})
    np.testing.assert_allclose(grad["response"], -1 / 3, rtol=1e-6)


def test_bnf_push_on_a_rejected_token_dies_out():
    policy, ref = {"response": [[-30.0]]}, {"response": [[-1.0]]}
    _, grad = worked(OBJECTIVES["bnf"], policy, ref, {"label": jnp.zeros(1)})
    assert 0 < grad["response"][0] < 1e-12
