"""What the masks of `sparse_po` are, and what it is where they are all alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lib.objectives import draw, value_and_grad

from jaxalign.core import stats
from jaxalign.objectives import OBJECTIVES

SPARSE_PO = OBJECTIVES["sparse_po"]


def mask_of(means, mask):
    return np.asarray(stats.activation.fn(jnp.array(means, jnp.float32), jnp.array(mask)))


def test_the_least_active_token_counts_0_and_the_most_active_1():
    mask = mask_of([[[3.0, -1.0, 1.0, 9.0]]], [[True, True, True, False]])
    np.testing.assert_allclose(mask[0, :3], [1.0, 0.0, 0.5], rtol=1e-6)


def test_layers_count_alike_whatever_their_size_and_shift():
    one = [0.0, 1.0, 4.0]
    mask = mask_of([[one, [100.0 - 8 * x for x in one]]], [[True] * 3])
    np.testing.assert_allclose(mask, 0.5, rtol=1e-5)


def test_a_layer_that_tells_no_tokens_apart_counts_as_1():
    mask = mask_of([[[2.0, 2.0], [5.0, 7.0]]], [[True, True]])
    np.testing.assert_allclose(mask, [[0.5, 1.0]])


@pytest.mark.parametrize("scored", [0, 1])
def test_a_response_of_one_token_or_none_has_a_mask_of_1(scored):
    with jax.debug_nans(True):
        mask = mask_of([[[2.0, 3.0]]], [[t < scored for t in range(2)]])
    np.testing.assert_array_equal(mask, 1.0)


def test_with_masks_of_1_it_is_tdpo1():
    case = draw(SPARSE_PO, 2)
    case["layers"] = jax.tree.map(jnp.zeros_like, case["layers"])
    ours, theirs = (value_and_grad(OBJECTIVES[n], case, beta=0.3) for n in ("sparse_po", "tdpo1"))
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
    for row, slope in theirs[1].items():
        # 1e-7: sums over tokens in another order
        np.testing.assert_allclose(ours[1][row], slope, rtol=1e-5, atol=1e-7)


def test_a_token_of_mask_0_does_not_move():
    case = draw(SPARSE_PO)
    layers = {r: x.at[:, :, 0].set(-10.0) for r, x in case["layers"].items()}
    _, grad = value_and_grad(SPARSE_PO, case | {"layers": layers})
    long = {r: np.asarray(m.sum(-1) > 1) for r, m in case["masks"].items()}
    for row, slope in grad.items():
        np.testing.assert_array_equal(slope[long[row], 0], 0.0)
        assert np.abs(slope[long[row], 1]).max() > 0


def test_at_the_reference_no_chosen_token_falls_and_no_rejected_one_rises():
    case = draw(SPARSE_PO)
    loss, grad = value_and_grad(SPARSE_PO, case | {"policy": case["ref"]})
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)
    assert (grad["chosen"] <= 0).all()
    assert (grad["rejected"] >= 0).all()
