"""The routing of tokens to experts: its metrics, and the loss that balances it."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ..core.types import Array
from ..models.layers.mixture import Routing


def balance_loss(routing: Routing) -> Array:
    """E sum_e f_e P_e over the tokens of all layers together, as transformers 5.24 computes it.

    f_e is the share of tokens that expert e computes, a constant to the gradient; P_e is its mean
    probability. Its smallest value under even loads is the number of experts of a token. A token
    that responses share in a row counts once.

    Source: Fedus et al. 2021, arXiv:2101.03961, equation 4, for one layer and one expert a token.
    transformers 5.0 takes the softmax twice for most families.

    Args:
      routing: sums over the tokens of the whole batch, [layers, ...].
    """
    experts = routing.load.shape[-1]
    tokens, load = jax.lax.stop_gradient((routing.tokens.sum(), routing.load.sum(0)))
    return experts * jnp.vdot(load, routing.probability.sum(0)) / tokens**2


def balance_gradient(routing: Routing) -> Routing:
    """The gradient of `balance_loss` by the sums of any part of the batch, given all of it.

    The loss is linear in the probabilities, so that its gradient is the same for every part.
    """
    return jax.grad(balance_loss)(routing)


def routing_sums(routing: Routing | None) -> dict[str, tuple[Array, Array]]:
    """The metrics of a batch as (sum, weight); none without experts.

    `router/entropy` is the mean over layers and tokens of the entropy of the softmax of the logits,
    nats. `router/largest_load` is the largest load of an expert of any layer, as a multiple of an
    even load. `router/balance_loss` is `balance_loss`.
    """
    if routing is None:
        return {}
    even = routing.load.mean(-1)
    one = jnp.ones(())
    return {
        "router/entropy": (routing.entropy.sum(), routing.tokens.sum()),
        "router/largest_load": (jnp.max(routing.load.max(-1) / even), one),
        "router/balance_loss": (balance_loss(routing), one),
    }
