"""Worked values and closed-form anchors of the objectives on labels, demonstrations and pairs."""

from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lib.objectives import call, draw, layout, logit_grads, ragged_logp, value_and_grad
from lib.worked import KL, LP, PAIR, REF_KL, REF_PAIR, RP, sums, worked

from jaxalign.objectives import OBJECTIVES
from jaxalign.objectives.dco import log_coverage
from jaxalign.objectives.implicit_prm import process_rewards


def labelled(log_ratios):
    """Policy and reference whose log-ratios are given, one token a response."""
    return {"response": [[x - 1.0] for x in log_ratios]}, {"response": [[-1.0]] * len(log_ratios)}


def labels(values, **columns):
    n = len(values)
    columns = {"label": values, "weight": [1.0] * n} | columns
    return {k: jnp.asarray(v, jnp.float32) for k, v in columns.items()}


def assert_worked(got, loss, **grads):
    """A loss and slopes per summed log-probability, {row: [B]}, against worked values."""
    np.testing.assert_allclose(got[0], loss, rtol=1e-6)
    for row, slope in grads.items():
        np.testing.assert_allclose(got[1][row], slope, rtol=2e-6)


@pytest.mark.parametrize(
    ("row", "label", "loss", "slope"),
    [
        ("chosen", 1.0, 0.4825071423336, -0.02496939999307),
        ("rejected", 0.0, 0.49000133312, 0.02499000266606),
    ],
)
def test_worked_value_of_apo_zero_unpaired(row, label, loss, slope):
    policy, ref = {"response": PAIR[row]}, {"response": REF_PAIR[row]}
    got = worked(OBJECTIVES["apo_zero_unpaired"], policy, ref, labels([label]))
    assert_worked(got, loss, response=[slope])


def mismatched(n, label, log_ratio=0.0):
    """KTO's four arguments: n responses of one label, and others with one log-ratio."""
    policy, ref = labelled([0.7, -0.4, -0.8, 1.4][:n])
    other, ref_other = labelled([log_ratio] * n)
    policy["mismatched"], ref["mismatched"] = other["response"], ref_other["response"]
    return OBJECTIVES["kto"], policy, ref, labels([label] * n)


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_kto_with_one_label_only_is_that_half_of_apo_zero_where_z_is_zero(n, label):
    o, policy, ref, columns = mismatched(n, label, -3.0)
    loss, grad = worked(o, policy, ref, columns)
    half = worked(
        OBJECTIVES["apo_zero_unpaired"],
        {"response": policy["response"]},
        {"response": ref["response"]},
        columns,
    )
    assert_worked((loss, grad), half[0], response=half[1]["response"])


def test_kto_of_padding_alone_is_finite():
    o, policy, ref, columns = mismatched(2, 1.0, 3.0)
    value, grad = worked(o, policy, ref, columns | {"weight": jnp.zeros(2)})
    assert np.isfinite(value)
    assert np.isfinite(grad["response"]).all()


def test_kto_pulls_hardest_at_its_reference_point():
    o, policy, ref, columns = mismatched(4, 1.0, 0.7)
    _, grad = worked(o, policy, ref, columns)
    np.testing.assert_allclose(grad["response"][0], -0.1 / 4 / 4, rtol=1e-6)
    assert (np.abs(grad["response"][1:]) < 0.1 / 4 / 4).all()


def test_kto_reference_point_is_the_mean_of_all_mismatched_responses():
    o = OBJECTIVES["kto"]
    policy = {"response": [[x + 0.35] for x in RP], "mismatched": [[x] for x in KL]}
    ref = {"response": [[x] for x in RP], "mismatched": [[x] for x in REF_KL]}
    value, _ = worked(o, policy, ref, labels([1.0] * 4))
    np.testing.assert_allclose(value, 0.5, rtol=1e-6)


def reward_pairs(n):
    return {"response": [[x] for x in LP[:n]]}, {"response": [[x] for x in RP[:n]]}


def bco_after(batches, name="bco", **hyper):
    """BCO's worked loss and slopes for the last of some batches, and the state it leaves."""
    o, state = OBJECTIVES[name], OBJECTIVES[name].init_state()
    for policy, ref, columns in batches:
        out = o.bind(**hyper)(
            policy=o.data(sums(policy)), ref=o.data(sums(ref)), batch=columns, state=state
        )
        state = out[2]
    return worked(o, *batches[-1], state, **hyper), state


def test_worked_value_of_bco_with_the_mean_of_all_rewards():
    batch = (*reward_pairs(3), labels([1, 0, 0]))
    got, state = bco_after([batch], center="pooled")
    np.testing.assert_allclose(state.shift, -1 / 60, rtol=2e-5)
    slope = [-0.01594489616, 0.01647223104, 0.01613906523]
    assert_worked(got, 0.6647609431126, response=slope)


@pytest.mark.parametrize(
    ("hyper", "shift"),
    [
        ({}, 0.04025),
        ({"center": "pooled", "average": "cumulative"}, 0.0816666667),
        # By class, (0.21 + 0.5) / 3 and (-0.12 - 0.1) / 3; and an average of the two means.
        ({"average": "cumulative"}, 0.0816666667),
        ({"center": "pooled"}, 0.9 * 0.0225 + 0.1 * 0.2),
    ],
)
def test_worked_value_of_the_shift_after_a_second_batch(hyper, shift):
    first = (*reward_pairs(4), labels([1, 0, 0, 1]))
    second = (*labelled([5.0, -1.0]), labels([1, 0]))
    _, state = bco_after([first, second], **hyper)
    np.testing.assert_allclose(state.shift, shift, rtol=1e-5)


@pytest.mark.parametrize(
    ("denominator", "loss", "slope"),
    [
        (
            "examples",
            1.052458316756,
            [-0.01220318081, 0.006054751053, 0.0474397388, -0.01176646875],
        ),
        (
            "weights",
            0.6476666763936,
            [-0.007509649958, 0.003726000763, 0.02919368631, -0.007240904068],
        ),
    ],
)
def test_worked_value_of_bco_with_matched_prompts(denominator, loss, slope):
    columns = labels([1, 0, 0, 1], density_ratio=[7.0, 0.3 / 0.7, 0.8 / 0.2, 0.1])
    batch = (*reward_pairs(4), columns)
    got, state = bco_after([batch], "bco_udm", denominator=denominator)
    np.testing.assert_allclose(state.shift, 0.0225, rtol=2e-5)
    assert_worked(got, loss, response=slope)


def test_bco_cumulative_mean_weighs_examples_not_batches():
    first = (*labelled([10.0] * 3), labels([1] * 3))
    second = (*labelled([50.0, 0.0]), labels([1, 0]))
    _, state = bco_after([first, second], average="cumulative")
    np.testing.assert_allclose(state.mean, [0.0, 2.0], atol=1e-6)


BNF_OAT = {
    "chosen": [
        [-0.2806043259, 0.1330699659, 0.04895370468, 0.09858065533],
        [0.08299649386, -0.2506642557, 0.05563421359, 0.1120335482],
        [0.1179694906, 0.04796281566, 0.07907731439, -0.2450096207],
    ],
    "rejected": [
        [-0.0746899971, -0.1504071839, 0.25865756, -0.03356037903],
        [0.268789307, -0.05158998298, -0.1402361133, -0.07696321077],
    ],
}


@pytest.mark.parametrize("row", ["chosen", "rejected"])
def test_bnf_divided_by_the_shortest_length_has_the_gradient_of_its_authors_code(row):
    _, grad = logit_grads("bnf_pair_batch_min")
    # 1e-5: oat's epsilon of 1e-6 on the reference probability is not ours.
    np.testing.assert_allclose(grad[row], BNF_OAT[row], rtol=1e-5)


@pytest.mark.parametrize(
    ("row", "label", "slopes"),
    [
        ("chosen", 1, [-1 / 3, -1 / 3, -0.259399798562]),
        ("rejected", 0, [0.326241547219, 0.5]),
    ],
)
def test_worked_slopes_of_bnf_with_respect_to_each_token(row, label, slopes):
    lp = [-0.8237322676, -0.6958087394, -0.9934048994]
    rp = [-0.9618414714, -0.9505032029, -0.842971689]
    if row == "rejected":
        lp, rp = [-1.574286715, -0.7712797128], [-1.251975998, -0.9884392729]
    o = OBJECTIVES["bnf"]

    def loss(lp):
        policy, ref = (o.data(sums({"response": [x]})) for x in (lp, jnp.asarray(rp)))
        return o.bind()(policy=policy, ref=ref, batch=labels([label]))[0].terms[0].total[0]

    np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(lp)), slopes, rtol=3e-6)


def test_worked_value_of_npo():
    policy, ref = {"response": PAIR["rejected"]}, {"response": REF_PAIR["rejected"]}
    got = worked(OBJECTIVES["npo"], policy, ref)
    assert_worked(got, 13.46694334456, response=[0.9800026662401])


def test_npo_is_gradient_ascent_as_beta_nears_zero():
    policy, ref = labelled([3.0, -40.0])
    _, grad = worked(OBJECTIVES["npo"], policy, ref, beta=1e-6)
    np.testing.assert_allclose(grad["response"], [0.5, 0.5], rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "hyper", "value"),
    [
        ("apo_zero_unpaired", {"desirable_weight": 3.0, "undesirable_weight": 3.0}, 1.5),
        ("npo", {}, 20 * np.log(2)),
        ("cpl_kl", {}, np.log(2)),
        ("implicit_prm", {}, np.log(2)),
    ],
)
def test_loss_at_the_reference_is_known(name, hyper, value):
    case = draw(OBJECTIVES[name], 0)
    out = call(OBJECTIVES[name], case | {"policy": case["ref"]}, **hyper)
    np.testing.assert_allclose(out[0].terms[0].total, value, rtol=1e-6)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_asft_with_beta_one_is_likelihood_and_unlikelihood(lam):
    case = draw(OBJECTIVES["asft"], 0)
    total = call(OBJECTIVES["asft"], case, lam=lam)[0].terms[0].total
    policy = ragged_logp(case["policy"], case["masks"])
    chosen, rejected = (np.array([y.mean() for y in policy[r]]) for r in ("chosen", "rejected"))
    expected = -(1 + lam) * chosen - lam * np.log(-np.expm1(rejected))
    np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_cpl_with_a_reference_and_no_bias_is_dpo():
    case = draw(OBJECTIVES["dpo"], 0)
    ours = value_and_grad(OBJECTIVES["cpl_kl"], case, alpha=0.3, lam=1.0)
    dpo = value_and_grad(OBJECTIVES["dpo"], case, beta=0.3)
    np.testing.assert_allclose(ours[0], dpo[0], rtol=1e-6)
    for row in dpo[1]:
        np.testing.assert_allclose(ours[1][row], dpo[1][row], rtol=1e-5)


def test_egpo_pulls_back_a_pair_beyond_its_gap():
    pair = {"chosen": [[-1.0]], "rejected": [[-3.0]]}
    ref = {"chosen": [[-2.0]], "rejected": [[-2.0]]}
    o, columns = OBJECTIVES["egpo"], {"preference_gap": jnp.array([-0.05])}
    got = worked(o, pair, ref, columns)
    assert_worked(got, 2.5**2, chosen=[5.0], rejected=[-5.0])


def test_gpo_vanishes_where_log_ratios_equal_the_scores():
    columns = {"score_chosen": jnp.array([0.07]), "score_rejected": jnp.array([-0.04])}
    value, _ = worked(OBJECTIVES["gpo"], PAIR, REF_PAIR, columns, beta=0.1)
    np.testing.assert_allclose(value, 0.0, atol=1e-10)


@pytest.mark.parametrize("divergence", ["tv", "kl", "jeffrey", "pearson", "js"])
def test_flat_is_a_sum_of_a_falling_and_a_rising_half(divergence):
    pair = {"chosen": [np.log([0.2, 0.6])], "rejected": [np.log([0.1, 0.5, 0.3])]}
    _, grad = worked(OBJECTIVES["flat"], pair, pair, divergence=divergence)
    assert grad["chosen"][0] < 0 < grad["rejected"][0]


def test_process_rewards_of_implicit_prm_add_up_to_its_reward():
    o = OBJECTIVES["implicit_prm"]
    case = draw(o, 0)
    policy, ref = (layout(o, case[k], case["masks"]).response for k in ("policy", "ref"))
    q = process_rewards(policy, ref, beta=0.3)
    np.testing.assert_allclose(q[:, -1], 0.3 * (policy.logp - ref.logp), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(q[:, 0], 0.3 * (policy.token["logp"] - ref.token["logp"])[:, 0])


def exact_coverage(logp, n):
    """Loss and F of DCO with 60 digits."""
    with localcontext() as context:
        context.prec = 60
        p = Decimal(logp).exp()
        missed = (1 - p) ** n
        return float(-(1 - missed).ln()), float(n * p * missed / (1 - p) / (1 - missed))


@pytest.mark.parametrize("n", [1, 16, 1024])
@pytest.mark.parametrize("logp", [-1e-7, -1e-3, -0.69, -5.0, -12.0, -61.0, -66.0, -70.0, -90.0])
def test_dco_coverage_is_exact_in_float32(logp, n):
    logp = float(np.float32(logp))
    value, slope = jax.value_and_grad(log_coverage)(logp, float(n))
    loss, f = exact_coverage(logp, n)
    if f > 1e-37:  # below it float32 has no numbers
        np.testing.assert_allclose(slope, f, rtol=1e-5)
    if loss > 1e-37:
        np.testing.assert_allclose(-value, loss, rtol=1e-5)


def test_dco_coverage_of_a_long_response_is_likelihood():
    value, slope = jax.value_and_grad(log_coverage)(-5e4, 16.0)
    np.testing.assert_allclose([value, slope], [-5e4 + np.log(16.0), 1.0], rtol=1e-7)
