"""A loss called by hand: statistics of responses, and the mean of a loss."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.core.stats import response
from jaxalign.core.types import Loss, Mean, Pairs, per_example, per_token
from jaxalign.objectives.dpo import dpo


def test_dpo_of_one_pair_is_its_formula():
    ref = Pairs(chosen=response([-2.0, -1.0]), rejected=response([-2.0, -1.0]))
    policy = Pairs(chosen=response([-1.0, -1.0]), rejected=response([-3.0, -1.0]))
    loss, _ = dpo(policy, ref, beta=0.1)
    assert f"{loss.mean():.4f}" == "0.5981"


def test_one_axis_is_a_batch_of_one_example():
    stats = response([-1.0, -2.0, -4.0], [True, False, True])
    assert (stats.logp.tolist(), stats.length.tolist()) == ([-5.0], [2.0])
    assert stats.mask.tolist() == [[1.0, 0.0, 1.0]]


def test_two_axes_are_examples_and_tokens():
    stats = response([[-1.0, -2.0], [-3.0, -4.0]])
    assert stats.logp.tolist() == [-3.0, -7.0]


def test_the_complement_comes_from_the_log_probability():
    stats = response([-1e-4, -20.0])
    want = np.log(-np.expm1([-1e-4, -20.0]))
    np.testing.assert_allclose(stats.token["log_complement"][0], want, rtol=1e-5)


@pytest.mark.parametrize("shape", [(), (1, 2, 3)])
def test_another_number_of_axes_is_refused(shape):
    with pytest.raises(ValueError, match=r"logp has shape \(.*\); wanted \[T\] or \[B, T\]"):
        response(np.zeros(shape))


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"mask has shape \(3,\), and logp has \(2,\)"):
        response([-1.0, -2.0], [True, True, False])


def test_the_mean_of_a_loss_is_the_sum_of_its_terms_means():
    loss = per_token(jnp.array([2.0, 4.0]), jnp.array([1.0, 3.0])) + 0.5 * per_example(
        jnp.array([1.0, 3.0])
    )
    assert float(loss.mean()) == 6 / 4 + 0.5 * 2


def test_a_weight_scales_totals_and_counts_and_0_hides_an_example():
    loss = Loss((Mean(jnp.array([1.0, 4.0, jnp.nan]), jnp.array([1.0, 2.0, 1.0])),))
    np.testing.assert_allclose(loss.mean(jnp.array([1.0, 3.0, 0.0])), 13 / 7, rtol=1e-6)
