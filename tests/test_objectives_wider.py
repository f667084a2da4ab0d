"""Worked values and closed-form anchors of the objectives on labels, demonstrations and pairs."""

import jax.numpy as jnp
import numpy as np
import pytest
from test_objectives import KL, LP, PAIR, REF_KL, REF_PAIR, RP, worked

from jaxalign.objectives import OBJECTIVES


def labelled(log_ratios):
    """Policy and reference whose log-ratios are given, one token a response."""
    return {"response": [[x - 1.0] for x in log_ratios]}, {"response": [[-1.0]] * len(log_ratios)}


def labels(values, **columns):
    n = len(values)
    columns = {"label": values, "weight": [1.0] * n} | columns
    return {k: jnp.asarray(v, jnp.float32) for k, v in columns.items()}


def assert_worked(got, loss, **grads):
    """A loss and slopes per summed log-probability, {row: [B]}, against those of the sheet."""
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
