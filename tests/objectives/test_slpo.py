"""SLPO: its worked values, the complement tree, float32 at the ends, and its options."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lib.objectives import LOGITS, TARGETS, call, draw, logit_grads, sequence_stats
from oracles import ORACLES
from oracles.slpo import pair_split, targets

from jaxalign.core import stats
from jaxalign.core.stats import reduce_tokens
from jaxalign.core.types import Pairs
from jaxalign.errors import UserError
from jaxalign.objectives import OBJECTIVES
from jaxalign.objectives.slpo import complement_logp

SLPO = OBJECTIVES["slpo"]


@pytest.mark.parametrize(
    ("hyper", "scale", "loss", "chosen", "rejected"),
    [
        ({}, 1, 0.07268558813021, -0.005700010012808, 0.03394686140509),
        ({"temperature": None}, 4, 0.142149930116602, -0.09681920157931, 0.1059413599598),
        (
            {"temperature": None, "alpha": 0.9},
            1,
            0.02463726246464,
            -0.02130986884692,
            0.02354314047675,
        ),
        (
            {"temperature": 3.0, "alpha": 0.9},
            1,
            0.01436058357933,
            -0.005156118258353,
            0.01293665151804,
        ),
        ({"temperature": 3.0}, 1, 0.09909572158772, -0.005700010012808, 0.02960181522261),
        (
            {"form": "joint", "temperature": None},
            1,
            0.132820789803233,
            -0.08830280450869,
            0.09658644076187,
        ),
        (
            {"form": "joint", "temperature": None, "alpha": 0.9, "mass_shift": "paper"},
            1,
            None,
            -0.07130248413955,
            0.07958612039274,
        ),
        (
            {"form": "joint", "temperature": None, "alpha": 0.9},
            1,
            None,
            -0.07766137406863,
            0.08594501032182,
        ),
    ],
    ids=["code_6.1", "eq8", "repo_t1", "repo_t3", "alpha1_t3", "eq6", "eq7_paper", "eq7_repo"],
)
@pytest.mark.parametrize("complement", ["tree", "closed"])
def test_worked_value_of_slpo(hyper, scale, loss, chosen, rejected, complement):
    value, grad = logit_grads("slpo", complement=complement, **hyper)
    if loss is not None:  # None: the loss of Eq. 7 is known up to a constant only
        np.testing.assert_allclose(scale * value, loss, rtol=3e-6)
    for row, expected in (("chosen", chosen), ("rejected", rejected)):
        p = np.exp(LOGITS[row][0]) / np.exp(LOGITS[row][0]).sum()
        hit = np.eye(4)[TARGETS[row][0]]
        # 1e-5: the chosen gradient is a difference that loses a digit.
        np.testing.assert_allclose(scale * grad[row][0], expected * (hit - p), rtol=1e-5)


def sums(x_w, x_l, rho_w, rho_l, n_w, n_l, **hyper):
    """Loss and its gradient in (x_w, x_l), from summed log-probabilities far from 0."""

    def one(logp, length):
        y = sequence_stats(jnp.zeros((1, 1)), jnp.ones((1, 1), bool))
        logp, length = jnp.reshape(logp, 1), jnp.full(1, length, jnp.float32)
        return y.replace(logp=logp, length=length, token=y.token | {"logp": logp[:, None]})

    ref = Pairs(one(jnp.float32(rho_w), n_w), one(jnp.float32(rho_l), n_l))

    def fn(x):
        policy = Pairs(one(x[0], n_w), one(x[1], n_l))
        return SLPO.bind(**hyper)(policy=policy, ref=ref)[0].terms[0].total[0]

    return jax.value_and_grad(fn)(jnp.asarray([x_w, x_l], jnp.float32))


@pytest.mark.parametrize(
    ("hyper", "loss", "grad"),
    [
        ({}, 0.04408843983993, [-6.853013296971e-07, 8.420462602029e-05]),
        (
            {"alpha": 0.9, "temperature": 512.0},
            5.31020400972e-06,
            [-6.708163930683e-07, 1.005795180499e-06],
        ),
    ],
    ids=["code_6.1", "repo"],
)
def test_worked_value_of_a_long_pair(hyper, loss, grad):
    value, ours = sums(-800, -790, -805, -795, 512, 480, **hyper)
    np.testing.assert_allclose(value, loss, rtol=1e-6)
    np.testing.assert_allclose(ours, grad, rtol=2e-6)


@pytest.mark.parametrize("alpha", [1.0, 0.9])
@pytest.mark.parametrize("total", [-5.0, -100.0, -800.0, -8000.0])
@pytest.mark.parametrize("away", [1e-3, 1.0, 30.0], ids=["at_ref", "1_nat", "30_nats"])
def test_float32_equals_float64_at_any_length(total, away, alpha):
    x = np.float32([total + away / 10, total - away / 7])
    rho = np.float32([total, total * 1.001])
    value, grad = sums(*x, *rho, 512, 480, alpha=alpha)
    x, rho = x.astype(float), rho.astype(float)
    loss, *expected = pair_split(*x, *targets(*rho, alpha, "repo"), 512, 480)
    # The sums are the same float32 numbers on both sides, so nothing is lost on the way in.
    np.testing.assert_allclose(value, loss, rtol=1e-5)
    np.testing.assert_allclose(grad, expected, rtol=1e-5)


def long_case(kind):
    """512 tokens of each response, {row: log-odds [1, 512]}, float32."""
    rng = np.random.default_rng(1)
    if kind == "sure":  # p = 1 - 1e-8 per token, the other response less likely than 1 - p
        chosen = 18.42 + 0.1 * rng.normal(size=512)
        rejected = chosen.copy()
        rejected[7] = -25.0
    elif kind == -8000.0:  # a few tokens of e^-1000
        chosen, rejected = rng.normal(1.0, 2.0, (2, 512))
        chosen[[3, 50, 70, 90, 200, 300, 500]] = -1000.0
        rejected[[5, 60, 70, 80, 250, 400, 501]] = -1000.0
    else:
        chosen, rejected = rng.normal(size=(2, 512))
        for y in (chosen, rejected):
            for _ in range(60):  # shift the log-odds until the log-probabilities sum to `kind`
                total = -np.logaddexp(0, -y).sum()
                y -= (total - kind) / (1 / (1 + np.exp(y))).sum()
    return {
        k: jnp.asarray(v[None], jnp.float32)
        for k, v in {"chosen": chosen, "rejected": rejected}.items()
    }


@pytest.mark.parametrize("total", [-5.0, -100.0, -800.0, -8000.0, "sure"])
def test_gradient_reaches_every_token_to_float32(total):
    policy, mask = long_case(total), jnp.ones((1, 512), bool)
    ref = {k: v - 0.05 for k, v in policy.items()}
    ref_stats = Pairs(**{k: sequence_stats(v, mask) for k, v in ref.items()})

    def fn(policy):
        y = Pairs(**{k: sequence_stats(v, mask) for k, v in policy.items()})
        return SLPO.bind()(policy=y, ref=ref_stats)[0].terms[0].total[0]

    value, grad = jax.value_and_grad(fn)(policy)
    exact = {
        k: {r: [-np.logaddexp(0, -np.asarray(v[0], float))] for r, v in rows.items()}
        for k, rows in (("policy", policy), ("ref", ref))
    }
    loss, expected = ORACLES["slpo"](exact["policy"], exact["ref"], {})
    np.testing.assert_allclose(value, loss, rtol=1e-5)
    for r in policy:
        m = np.asarray(policy[r][0], float)
        np.testing.assert_allclose(grad[r][0], expected[r][0] / (1 + np.exp(m)), rtol=1e-5)


def complement_of(log_odds, how="tree"):
    m = jnp.asarray(log_odds, jnp.float32)
    mask = jnp.ones(m.shape, bool)
    return jax.value_and_grad(lambda m: complement_logp(sequence_stats(m, mask), how)[0])(m)


@pytest.mark.parametrize("m", [20.0, 95.0, 300.0], ids=["2e-9", "6e-42", "5e-131"])
def test_tree_is_right_where_the_sum_of_log_probabilities_rounds_to_zero(m):
    value, grad = complement_of([[m, m + 1.0]])
    odds = np.exp([-1.0 * (m - m), -1.0])
    np.testing.assert_allclose(value, -m + np.log(odds.sum()), rtol=1e-6)
    np.testing.assert_allclose(grad[0], -odds / odds.sum(), rtol=1e-5)


def test_closed_complement_is_stuck_where_the_sum_is_zero():
    _, grad = complement_of([[120.0, 120.0]], "closed")
    np.testing.assert_array_equal(grad, 0.0)


def test_tree_gives_a_sure_rejected_response_its_gradient():
    y = {"chosen": jnp.full((1, 2), -130.0), "rejected": jnp.full((1, 2), 120.0)}
    mask = jnp.ones((1, 2), bool)
    ref = Pairs(**{k: sequence_stats(v, mask) for k, v in y.items()})

    def fn(m, complement):
        policy = ref.replace(rejected=sequence_stats(m, mask))
        out = SLPO.bind(complement=complement)(policy=policy, ref=ref)
        return out[0].terms[0].total[0]

    # D/N = (120 - log 2)/2 whose gradient is 1/2 in each token's log-odds, halved by N, times 1/4.
    np.testing.assert_allclose(jax.grad(fn)(y["rejected"], "tree"), 1 / 16, rtol=1e-5)
    np.testing.assert_array_equal(jax.grad(fn)(y["rejected"], "closed"), 0.0)


@pytest.mark.parametrize("mean", [-2.0, 1.0, 3.0, 8.0, 15.0])
def test_tree_equals_the_closed_form_in_value_and_gradient(mean):
    m = np.random.default_rng(0).normal(mean, 1.0, (1, 6))
    tree, closed = complement_of(m), complement_of(m, "closed")
    np.testing.assert_allclose(tree[0], closed[0], rtol=2e-6)
    np.testing.assert_allclose(tree[1], closed[1], rtol=2e-5)


def test_complement_of_an_enumerated_model_is_the_mass_of_all_other_sequences():
    rng = np.random.default_rng(0)
    logits = {
        p: rng.normal(size=3) for n in range(3) for p in itertools.product(range(3), repeat=n)
    }
    logits = {p: z + 4.0 * np.eye(3)[1] for p, z in logits.items()}

    def probability(y):
        steps = [np.exp(logits[y[:t]]) for t in range(3)]
        return np.prod([e[y[t]] / e.sum() for t, e in enumerate(steps)])

    y = (1, 1, 1)
    others = sum(probability(o) for o in itertools.product(range(3), repeat=3) if o != y)
    z = jnp.asarray([logits[y[:t]] for t in range(3)], jnp.float32)[None]
    target = jnp.asarray([y])
    token = {s.name: s(z, target) for s in SLPO.needs}
    ours = complement_logp(reduce_tokens(token, jnp.ones((1, 3), bool)), "tree")
    np.testing.assert_allclose(ours, np.log(others), rtol=1e-6)


def test_a_masked_position_is_no_branch():
    m = jnp.asarray([[3.0, -1.0, 4.0]])
    gap = sequence_stats(m, jnp.asarray([[True, False, True]]))
    packed = sequence_stats(m[:, ::2], jnp.ones((1, 2), bool))
    np.testing.assert_allclose(
        complement_logp(gap, "tree"), complement_logp(packed, "tree"), rtol=1e-6
    )


def test_alpha_one_never_stops_pushing_the_rejected_response():
    _, grad = sums(-200.0, -900.0, -200.0, -200.0, 128, 128)
    assert grad[1] > 0


def test_alpha_below_one_stops_at_the_rejected_target():
    target = -200.0 + np.log(0.1)
    _, grad = sums(-200.0, target, -200.0, -200.0, 128, 128, alpha=0.9)
    # 1e-5 nats, half a unit in the last place of -200, times the curvature
    np.testing.assert_allclose(grad[1], 0.0, atol=1e-10)


def test_chosen_gradient_changes_sign_at_its_target():
    target = -121.0 + np.log(2.0)
    below = sums(target - 0.1, -121.0, -121.0, -121.0, 128, 128)[1][0]
    above = sums(target + 0.1, -121.0, -121.0, -121.0, 128, 128)[1][0]
    assert below < 0 < above


def test_rejected_gradient_is_256_times_the_chosen_one_at_the_start():
    _, (chosen, rejected) = sums(-121.0, -121.0, -121.0, -121.0, 128, 128)
    np.testing.assert_allclose(-rejected / chosen, 256.0, rtol=0.01)


def test_rejected_gradient_ratio_grows_with_the_reference_gap():
    _, (chosen, rejected) = sums(-121.0, -141.0, -121.0, -141.0, 128, 128)
    np.testing.assert_allclose(-rejected / chosen, 7.7e10, rtol=0.02)


def test_no_temperature_gives_zero_at_real_lengths():
    value, grad = sums(-800.0, -790.0, -805.0, -795.0, 512, 480, temperature=None)
    np.testing.assert_array_equal([value, *grad], 0.0)


def test_no_temperature_is_temperature_one():
    none = sums(-3.0, -2.0, -2.5, -2.2, 3, 3, temperature=None)
    one = sums(-3.0, -2.0, -2.5, -2.2, 3, 3, temperature=1.0)
    np.testing.assert_array_equal(none[1], one[1])


def test_paper_shift_is_repo_shift_when_all_mass_moves():
    case = draw(SLPO, 0)
    repo, paper = (call(SLPO, case, mass_shift=m)[0].terms[0].total for m in ("repo", "paper"))
    np.testing.assert_allclose(repo, paper, rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.8, 1.0])
@pytest.mark.parametrize("mass_shift", ["repo", "paper"])
def test_joint_form_equals_its_oracle(alpha, mass_shift):
    x, rho = (-1.2, -0.9), (-0.8, -1.7)
    hyper = {"form": "joint", "temperature": None, "alpha": alpha, "mass_shift": mass_shift}
    value, grad = sums(*x, *rho, 3, 3, **hyper)
    tokens = ({"chosen": [np.array([a])], "rejected": [np.array([b])]} for a, b in (x, rho))
    loss, expected = ORACLES["slpo"](*tokens, {}, **hyper)
    np.testing.assert_allclose(value, loss, rtol=1e-5)
    np.testing.assert_allclose(grad, [expected["chosen"][0][0], expected["rejected"][0][0]], 1e-5)


def test_joint_value_keeps_its_digits_near_the_target():
    value, _ = sums(-1.2, -2.0, -1.201, -2.001, 3, 3, form="joint", temperature=None, alpha=0.0)
    x, rho = np.float32([-1.2, -2.0]).astype(float), np.float32([-1.201, -2.001]).astype(float)
    p, q = (np.append(np.exp(v), 1 - np.exp(v).sum()) for v in (x, rho))
    np.testing.assert_allclose(value, (q * np.log(q / p)).sum(), rtol=1e-3)


def test_joint_form_refuses_a_temperature():
    with pytest.raises(UserError, match=r"'joint' has no temperature; set .*; got 'length'"):
        call(SLPO, draw(SLPO, 0), form="joint")


def test_an_unknown_form_is_named_with_its_near_miss():
    with pytest.raises(TypeError, match="form has no choice 'spilt'; did you mean 'split'"):
        SLPO.bind(form="spilt")


@pytest.mark.parametrize("hyper", [{"form": "joint", "temperature": None}, {}, {"alpha": 0.5}])
def test_identical_responses_stay_finite(hyper):
    m = jnp.full((1, 2), 9.0)
    y = sequence_stats(m, jnp.ones((1, 2), bool))

    def fn(m):
        policy = Pairs(*(sequence_stats(m, jnp.ones((1, 2), bool)) for _ in range(2)))
        return SLPO.bind(**hyper)(policy=policy, ref=Pairs(y, y))[0].terms[0].total[0]

    assert np.isfinite(jax.value_and_grad(fn)(m)[0])
    assert np.isfinite(jax.grad(fn)(m)).all()


def test_numeric_options_may_be_traced():
    case = draw(SLPO, 0)

    def fn(alpha, temperature):
        return call(SLPO, case, alpha=alpha, temperature=temperature)[0].terms[0].total

    np.testing.assert_allclose(jax.jit(fn)(1.0, 3.0), fn(1.0, 3.0), rtol=1e-6)


def test_declares_the_complement_statistic():
    assert stats.log_complement in SLPO.needs
