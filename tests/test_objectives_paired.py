"""Worked values and anchors of paired objectives that the shared tables cannot hold."""

import numpy as np
from test_objectives import PAIR, REF_PAIR, worked

from jaxalign.objectives import OBJECTIVES


def test_worked_value_of_apo_down():
    value, grad = worked(OBJECTIVES["apo_down"], PAIR, REF_PAIR)
    np.testing.assert_allclose(value, 0.9900205533218, rtol=1e-6)
    np.testing.assert_allclose(grad["rejected"], [0.0249245272494], rtol=2e-6)
    # The difference of two slopes of 0.025, in float32.
    np.testing.assert_allclose(grad["chosen"], [4.487274366654e-05], atol=1e-6 * 0.025)


def test_apo_down_leaves_the_chosen_response_alone_at_the_reference():
    _, grad = worked(OBJECTIVES["apo_down"], PAIR, PAIR)
    np.testing.assert_array_equal(grad["chosen"], 0.0)


def test_worked_value_of_exo_as_its_authors_code_it():
    """Their target is exp of (0, -10), unnormalised."""
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
