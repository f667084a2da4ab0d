"""Worked values and anchors of paired objectives that the shared tables cannot hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lib.objectives import call, draw, reduce
from lib.worked import PAIR, REF_PAIR, at_reference, rows, worked

from jaxalign.core.stats import reduce_tokens
from jaxalign.core.types import Pairs
from jaxalign.objectives import OBJECTIVES


def test_worked_value_of_apo_down():
    value, grad = worked(OBJECTIVES["apo_down"], PAIR, REF_PAIR)
    np.testing.assert_allclose(value, 0.9900205533218, rtol=1e-6)
    np.testing.assert_allclose(grad["rejected"], [0.0249245272494], rtol=2e-6)
    np.testing.assert_allclose(grad["chosen"], [4.487274366654e-05], rtol=1e-5)


def test_apo_down_leaves_the_chosen_response_alone_at_the_reference():
    _, grad = worked(OBJECTIVES["apo_down"], PAIR, PAIR)
    np.testing.assert_array_equal(grad["chosen"], 0.0)


def test_worked_value_of_exo_as_its_authors_code_it():
    """Their target is exp of (0, -10), unnormalized."""
    value, grad = worked(OBJECTIVES["exo_pair"], PAIR, REF_PAIR, label_smoothing=np.exp(-10.0))
    np.testing.assert_allclose(value, 4.03363999141, rtol=2e-5)
    np.testing.assert_allclose(grad["rejected"], [0.2465035744966], rtol=2e-5)


def test_robust_dpo_averaged_over_flips_is_dpo():
    flipped = [{"chosen": p["rejected"], "rejected": p["chosen"]} for p in (PAIR, REF_PAIR)]
    right, _ = worked(OBJECTIVES["robust_dpo"], PAIR, REF_PAIR, label_smoothing=0.2)
    wrong, _ = worked(OBJECTIVES["robust_dpo"], *flipped, label_smoothing=0.2)
    clean, _ = worked(OBJECTIVES["dpo"], PAIR, REF_PAIR)
    np.testing.assert_allclose(0.8 * right + 0.2 * wrong, clean, rtol=1e-6)


def test_ipo_pushes_back_beyond_its_margin():
    policy = {"chosen": [[-1.0]], "rejected": [[-8.0]]}
    ref = {"chosen": [[-1.0]], "rejected": [[-1.0]]}
    _, grad = worked(OBJECTIVES["ipo"], policy, ref)
    np.testing.assert_allclose(grad["chosen"], [4.0], rtol=1e-6)


def test_nca_draws_the_chosen_reward_to_log_2():
    policy = {"chosen": [[-1.0]], "rejected": [[-1.0]]}
    ref = {"chosen": [[-1.0 - np.log(2) / 0.1]], "rejected": [[-1.0]]}
    _, grad = worked(OBJECTIVES["nca_pair"], policy, ref, beta=0.1)
    np.testing.assert_allclose(grad["chosen"], 0.0, atol=1e-8)


def test_hinge_is_zero_beyond_its_margin():
    policy = {"chosen": [[-1.0]], "rejected": [[-8.0]]}
    ref = {"chosen": [[-1.0]], "rejected": [[-1.0]]}
    value, grad = worked(OBJECTIVES["hinge"], policy, ref, beta=1.0)
    assert value == 0.0
    np.testing.assert_array_equal(grad["chosen"], 0.0)


@pytest.mark.parametrize(
    ("name", "hyper", "value"),
    [
        ("robust_dpo", {}, np.log(2)),
        ("sigmoid_norm", {}, np.log(2)),
        ("hinge", {}, 1.0),
        ("ipo", {}, 25.0),
        ("exo_pair", {}, -np.log(2) - np.log(1e-3 * (1 - 1e-3)) / 2),
        ("nca_pair", {}, 2 * np.log(2)),
        ("apo_zero", {}, 1.0),
        ("apo_down", {}, 1.0),
        ("discopop", {}, (1 + np.log(2)) / 2),
        ("sppo_hard", {"beta": 0.1}, 50.0),
        ("f_dpo", {"divergence": "reverse_kl"}, np.log(2)),
        ("f_dpo", {"divergence": "forward_kl"}, np.log(2)),
        ("f_dpo", {"divergence": "js"}, np.log(2)),
        ("f_dpo", {"divergence": "alpha"}, np.log(2)),
        ("dpop", {}, np.log(2)),
        ("r_dpo", {"alpha": 0.0}, np.log(2)),
        ("cal_dpo", {"beta": 0.1}, np.log(2) + 25.0),
        ("ld_dpo", {}, np.log(2)),
        ("spce", {}, np.log(2)),
        ("flex_dpo", {}, np.log(2)),
    ],
)
def test_loss_at_the_reference_is_known(name, hyper, value):
    _, out = at_reference(name, **hyper)
    np.testing.assert_allclose(out[0].terms[0].total, value, rtol=1e-6)


SCORES = {"score_chosen": jnp.array([8.0]), "score_rejected": jnp.array([6.5])}


def test_worked_value_of_odpo():
    value, grad = worked(OBJECTIVES["odpo"], PAIR, REF_PAIR, SCORES)
    np.testing.assert_allclose(value, 0.8517527239929, rtol=1e-6)
    np.testing.assert_allclose(grad["chosen"], [-0.05733335523226], rtol=2e-6)
    np.testing.assert_allclose(grad["rejected"], [0.05733335523226], rtol=2e-6)


def test_odpo_takes_the_difference_of_logarithms_for_the_authors_ratio():
    logs = {k: jnp.log(v) for k, v in SCORES.items()}
    value, _ = worked(OBJECTIVES["odpo"], PAIR, REF_PAIR, logs, scale="difference")
    np.testing.assert_allclose(value, np.log1p(8.0 / 6.5 * np.exp(-0.11)), rtol=1e-6)


def test_odpo_of_a_tie_has_no_gradient():
    tie = {"score_chosen": jnp.array([3.0]), "score_rejected": jnp.array([3.0])}
    value, grad = worked(OBJECTIVES["odpo"], PAIR, REF_PAIR, tie)
    np.testing.assert_allclose([value, grad["chosen"][0]], 0.0, atol=1e-30)


def test_odpo_at_the_reference_is_the_offset_alone():
    value, _ = worked(OBJECTIVES["odpo"], PAIR, PAIR, SCORES, alpha=2.0)
    np.testing.assert_allclose(value, np.log1p(1.5**2), rtol=1e-6)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_sppo_halves_are_drawn_to_the_log_odds_scale_of_the_preference(p):
    value, grad = worked(
        OBJECTIVES["sppo"], PAIR, REF_PAIR, {"preference": jnp.array([p])}, beta=0.1
    )
    target = (p - 0.5) / 0.1
    np.testing.assert_allclose(value, (0.7 - target) ** 2 + (target - 0.4) ** 2, rtol=1e-5)
    np.testing.assert_allclose(grad["chosen"], [2 * (0.7 - target)], rtol=1e-5)
    np.testing.assert_allclose(grad["rejected"], [2 * (target - 0.4)], rtol=1e-5)


def test_spce_with_one_preference_for_all_is_cdpo():
    soft, grad = worked(OBJECTIVES["spce"], PAIR, REF_PAIR, {"preference": jnp.array([0.9])})
    smooth, smooth_grad = worked(OBJECTIVES["dpo"], PAIR, REF_PAIR, label_smoothing=0.1)
    np.testing.assert_allclose(soft, smooth, rtol=1e-6)
    np.testing.assert_allclose(grad["chosen"], smooth_grad["chosen"], rtol=1e-6)


def below_reference():
    """The pair with log pi(y_w|x) = -13.4, below its reference of -13."""
    tokens = [*PAIR["chosen"][0]]
    tokens[0] -= 1.1
    return PAIR | {"chosen": [tokens]}


def test_worked_value_of_dpop_below_the_reference():
    value, grad = worked(OBJECTIVES["dpop"], below_reference(), REF_PAIR, beta=0.3, lam=5.0)
    np.testing.assert_allclose(value, 1.037487950486, rtol=1e-6)
    np.testing.assert_allclose(grad["chosen"], [-1.162181351206], rtol=2e-6)
    np.testing.assert_allclose(grad["rejected"], [0.1936968918677], rtol=2e-6)


def test_dpop_above_the_reference_is_dpo():
    value, grad = worked(OBJECTIVES["dpop"], PAIR, REF_PAIR, beta=0.1)
    same, same_grad = worked(OBJECTIVES["dpo"], PAIR, REF_PAIR)
    np.testing.assert_array_equal([value, *grad["chosen"]], [same, *same_grad["chosen"]])


@pytest.mark.parametrize(("alpha", "like"), [(1e-3, "reverse_kl"), (1 - 1e-3, "forward_kl")])
def test_f_dpo_of_alpha_lies_between_the_two_kl(alpha, like):
    value, grad = worked(OBJECTIVES["f_dpo"], PAIR, REF_PAIR, alpha=alpha)
    same, same_grad = worked(OBJECTIVES["f_dpo"], PAIR, REF_PAIR, divergence=like)
    np.testing.assert_allclose(value, same, rtol=1e-4)
    np.testing.assert_allclose(grad["chosen"], same_grad["chosen"], rtol=2e-3)


@pytest.mark.parametrize("alpha", [1e-6, 0.5])
def test_f_dpo_of_alpha_keeps_its_digits(alpha):
    value, _ = worked(OBJECTIVES["f_dpo"], PAIR, REF_PAIR, alpha=alpha)
    margin = -0.1 * (np.expm1(-0.7 * alpha) - np.expm1(0.4 * alpha)) / alpha
    np.testing.assert_allclose(value, np.log1p(np.exp(-margin)), rtol=1e-6)


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "js", "alpha"])
def test_f_dpo_rewards_are_zero_at_the_reference(divergence):
    _, out = at_reference("f_dpo", divergence=divergence)
    np.testing.assert_allclose(out[1]["rewards/chosen"], 0.0, atol=1e-8)


@pytest.mark.parametrize("fall", [60.0, 90.0, 5000.0])
@pytest.mark.parametrize("row", ["chosen", "rejected"])
def test_f_dpo_has_a_finite_gradient_however_far_a_response_fell(fall, row):
    ref = {"chosen": [[-1.0]], "rejected": [[-1.0]]}
    policy = ref | {row: [[-1.0 - fall]]}
    value, grad = worked(OBJECTIVES["f_dpo"], policy, ref, divergence="forward_kl")
    assert np.isfinite([value, *grad["chosen"], *grad["rejected"]]).all()
    expected = -0.1 * np.exp(min(fall, 70.0)) if row == "chosen" else 0.0
    np.testing.assert_allclose(grad[row], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("hyper", "loss", "slope"),
    [
        ({}, 0.6372993954215, 0.0471281643),
        ({"desensitize": "policy"}, 0.7261752126141, 0.05162442811),
    ],
)
def test_worked_value_of_ld_dpo(hyper, loss, slope):
    def fn(values, masks):
        def build(tokens):
            return Pairs(**{r: reduce_tokens({"logp": tokens[r]}, masks[r]) for r in tokens})

        out = OBJECTIVES["ld_dpo"].bind(**hyper)(policy=build(values), ref=build(ref))
        return out[0].terms[0].total.sum()

    (values, masks), (ref, _) = rows(**PAIR), rows(**REF_PAIR)
    value, grad = jax.value_and_grad(fn)(values, masks)
    np.testing.assert_allclose(value, loss, rtol=1e-6)
    np.testing.assert_allclose(grad["chosen"][0], [-slope] * 5 + [0.0] * 2, rtol=2e-6)
    np.testing.assert_allclose(grad["rejected"][0], [slope] * 5 + [slope / 2] * 2, rtol=2e-6)


def test_ld_dpo_that_discounts_nothing_is_dpo():
    value, _ = worked(OBJECTIVES["ld_dpo"], PAIR, REF_PAIR, alpha=1.0)
    same, _ = worked(OBJECTIVES["dpo"], PAIR, REF_PAIR)
    np.testing.assert_allclose(value, same, rtol=1e-6)


def test_ld_dpo_counts_scored_tokens_not_positions():
    """Responses that start late in the row give what those at its start do."""
    (values, masks), (ref, _) = rows(**PAIR), rows(**REF_PAIR)

    def loss(move):
        def build(tokens):
            moved = {r: reduce_tokens({"logp": move(v)}, move(masks[r])) for r, v in tokens.items()}
            return Pairs(**moved)

        out = OBJECTIVES["ld_dpo"].bind()(policy=build(values), ref=build(ref))
        return out[0].terms[0].total

    late = loss(lambda x: jnp.pad(x, ((0, 0), (3, 0))))
    np.testing.assert_allclose(late, loss(lambda x: x), rtol=1e-6)


def test_flex_dpo_with_equal_betas_is_dpo():
    value, _ = worked(OBJECTIVES["flex_dpo"], PAIR, REF_PAIR, beta_rejected=0.1)
    same, _ = worked(OBJECTIVES["dpo"], PAIR, REF_PAIR)
    np.testing.assert_allclose(value, same, rtol=1e-6)


def test_discopop_lowers_a_small_margin_and_raises_a_larger_one():
    def slope(z):
        policy = {"chosen": [[-1.0]], "rejected": [[-1.0 - z / 0.05]]}
        ref = {"chosen": [[-1.0]], "rejected": [[-1.0]]}
        return worked(OBJECTIVES["discopop"], policy, ref)[1]["chosen"][0]

    assert slope(-0.12) < 0 < slope(-0.117)
    assert slope(0.0735) < 0 < slope(0.0705)


def test_orpo_is_finite_and_exact_where_a_response_is_certain():
    policy = {"chosen": [[-1e-30]], "rejected": [[-1e-20, -3e-20]]}
    value, grad = worked(OBJECTIVES["orpo"], policy, policy)
    odds = 2e-20 / 1e-30
    np.testing.assert_allclose(value, 0.1 / odds, rtol=1e-5)
    # The slope of the log-odds is 1/(1 - p), 1e30 here.
    np.testing.assert_allclose(grad["chosen"], [-0.1 / odds * 1e30 - 1.0], rtol=1e-5)


# Transport

LOGPS = {"chosen": [-12.3, -30.0, -7.0], "rejected": [-14.1, -28.5, -9.5]}
REF_LOGPS = {"chosen": [-13.0, -29.0, -7.5], "rejected": [-13.7, -29.5, -9.0]}
AOT_GRAD = {
    "aot": (
        [-0.01575092319, -0.01832779991, -0.01583402708],
        [0.01575092319, 0.01832779991, 0.01583402708],
    ),
    "aot_unpaired": (
        [-0.01691664792, -0.01708324655, -0.01591717251],
        [0.01591717251, 0.01691664792, 0.01708324655],
    ),
}
AOT_LOSS = {"aot": 0.6940648160259, "aot_unpaired": 0.6919595544601}
AOT = pytest.mark.parametrize("name", AOT_LOSS)


def single(logps):
    """Responses of one token each."""
    return {row: [[y] for y in ys] for row, ys in logps.items()}


@AOT
def test_worked_value_of_aot(name):
    columns = {"weight": jnp.ones(3)}
    policy, ref = single(LOGPS), single(REF_LOGPS)
    value, grad = worked(OBJECTIVES[name], policy, ref, columns, beta=0.1)
    np.testing.assert_allclose(value, AOT_LOSS[name], rtol=1e-6)
    np.testing.assert_allclose(grad["chosen"], AOT_GRAD[name][0], rtol=2e-6)
    np.testing.assert_allclose(grad["rejected"], AOT_GRAD[name][1], rtol=2e-6)


@AOT
@pytest.mark.parametrize("at", [0, 1, 2, 3])
@pytest.mark.parametrize("stranger", [-200.0, 0.0, -10.0])
def test_aot_of_a_padded_batch_is_that_of_its_examples(name, at, stranger):
    """Whatever stands in the padding, wherever it stands, on either side of the comparison."""

    def padded(logps, value):
        return {r: [*ys[:at], value[r], *ys[at:]] for r, ys in logps.items()}

    policy = padded(LOGPS, {"chosen": stranger, "rejected": -3.0})
    ref = padded(REF_LOGPS, {"chosen": -4.0, "rejected": stranger})
    columns = {"weight": jnp.ones(4).at[at].set(0.0)}

    def loss(policy):
        def build(tokens):
            stats = {r: jnp.stack(v)[:, None] for r, v in tokens.items()}
            return Pairs(**{r: reduce_tokens({"logp": v}, v < 1) for r, v in stats.items()})

        held = {r: [jnp.float32(y) for y in ys] for r, ys in ref.items()}
        out = OBJECTIVES[name].bind(beta=0.1)(policy=build(policy), ref=build(held), batch=columns)
        return reduce(out[0], columns["weight"])

    policy = {r: [jnp.float32(y) for y in ys] for r, ys in policy.items()}
    value, grad = jax.value_and_grad(loss)(policy)
    np.testing.assert_allclose(value, AOT_LOSS[name], rtol=1e-6)
    for row, expected in zip(("chosen", "rejected"), AOT_GRAD[name], strict=True):
        assert grad[row].pop(at) == 0.0
        np.testing.assert_allclose(grad[row], expected, rtol=2e-6)


@AOT
def test_aot_of_a_batch_does_not_depend_on_its_order(name):
    case = draw(OBJECTIVES[name], 5)
    before = call(OBJECTIVES[name], case)[0].terms[0].total.sum()
    after = call(OBJECTIVES[name], jax.tree.map(lambda x: x[::-1], case))[0].terms[0].total.sum()
    np.testing.assert_allclose(after, before, rtol=1e-6)


@AOT
def test_aot_is_log_2_at_the_reference(name):
    _, out = at_reference(name)
    np.testing.assert_allclose(out[0].terms[0].total, np.log(2), rtol=1e-6)
