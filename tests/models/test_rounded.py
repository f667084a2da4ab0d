"""A rounded parameter has the values that a file in its dtype holds."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxalign.models.rounded import Rounded

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def near(kind):
    """float32 values at, halfway between and next to the positive values of a dtype, and others."""
    dtype = DTYPES[kind]
    bits = np.arange(0, 0x7C00 if kind == "float16" else 0x7F80, dtype=np.uint16)
    held = bits.view(dtype).astype(np.float32)
    # XLA may set the subnormal numbers of float32 to 0.
    held = held[(held == 0) | (held >= np.finfo(np.float32).tiny)]
    halfway = (held[:-1] + held[1:]) / 2
    up, down = (np.nextafter(halfway, np.float32(end)) for end in (np.inf, 0))
    random = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    found = np.concatenate([held, halfway, up, down, random, random * 1e-6])
    return np.concatenate([found, -found])


@pytest.mark.parametrize("kind", list(DTYPES))
def test_values_are_rounded_once_to_the_nearest_even_value(kind):
    values = near(kind)
    ours = jax.jit(lambda x: Rounded(x, kind).astype(jnp.float32))(values)
    np.testing.assert_array_equal(ours, values.astype(DTYPES[kind]).astype(np.float32))


@pytest.mark.parametrize("kind", list(DTYPES))
def test_the_gradient_is_that_of_the_value_before(kind):
    grad = jax.grad(lambda x: jnp.sum(Rounded(x, kind).astype(jnp.float32) ** 2))
    x = jnp.array([0.1, -3e-6, 7.0])
    np.testing.assert_array_equal(grad(x), 2 * Rounded(x, kind).astype(jnp.float32))
