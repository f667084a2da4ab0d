"""Draws of a token: the frequencies, the edges and the restrictions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.collect.draw import How, draw, invert


def uniforms(count):
    """The middles of `count` equal parts of [0, 1)."""
    return (jnp.arange(count) + 0.5) / count


@pytest.mark.parametrize("vocab", [1, 2, 7, 64, 258, 5000])
def test_a_grid_of_numbers_draws_tokens_in_proportion(vocab):
    logits = jax.random.normal(jax.random.key(vocab), (vocab,)) * 2
    count = 20_000
    tokens = invert(uniforms(count), jnp.broadcast_to(logits, (count, vocab)))
    shares = np.bincount(np.asarray(tokens), minlength=vocab) / count
    np.testing.assert_allclose(shares, jax.nn.softmax(logits), atol=1.5 / count + 1e-6)


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2.0**-24])
def test_a_token_of_probability_0_is_never_drawn(uniform):
    logits = np.full((1, 300), -np.inf, np.float32)
    logits[0, [17, 120, 211]] = 0
    [token] = np.asarray(invert(jnp.array([uniform], jnp.float32), jnp.array(logits)))
    assert token == {0.0: 17, 0.5: 120}.get(uniform, 211)


def test_the_largest_number_below_1_draws_a_possible_token_of_any_row():
    logits = jax.random.normal(jax.random.key(0), (500, 777)) * 30
    tokens = invert(jnp.full(500, 1 - 2.0**-24), logits)
    chances = jnp.take_along_axis(jax.nn.softmax(logits), tokens[:, None], -1)
    assert (tokens < 777).all()
    assert (chances > 0).all()


def test_the_draws_of_a_key_differ_from_step_to_step():
    how = How(1.0, 0, 1.0, (), 8)
    keys = jax.vmap(jax.random.key)(jnp.zeros(50, jnp.uint32))
    tokens = draw(how, keys, jnp.arange(50), jnp.zeros((50, 1000))).id
    assert len(set(np.asarray(tokens).tolist())) > 40
