"""Distributional policy gradients: a smaller f-divergence to a target, on sampled responses."""

from __future__ import annotations

from typing import Literal

import flax.struct
import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.nn import softplus

from ..core.numerics import LOG_HALF, weighted_mean
from ..core.objective import objective
from ..core.types import Array, Demos, Loss, Metrics, per_example
from ._common import Decay

Divergence = Literal["js", "forward_kl", "reverse_kl", "tv", "chi2", "reverse_chi2"]
LARGEST = 30.0  # nats; e^30 times a log-probability fits in float32


@flax.struct.dataclass
class Baseline:
    """Running mean of the pseudo-reward under the policy."""

    mean: Array  # []
    seen: Array  # []  1.0 after the first batch


def no_baseline() -> Baseline:
    """The state before the first batch."""
    return Baseline(mean=jnp.zeros((), jnp.float32), seen=jnp.zeros((), jnp.float32))


@objective(
    Demos,
    source="Go et al. 2023, arXiv:2302.08215",
    columns=("behavior_logp", "target_logp", "weight"),
    couples_examples=True,
    init_state=no_baseline,
)
def f_dpg(
    policy: Demos,
    batch: dict[str, Array],
    state: Baseline,
    *,
    divergence: Divergence = "js",
    decay: Decay = 0.9,
) -> tuple[Loss, Metrics, Baseline]:
    """f-DPG: its gradient on samples is the gradient of D_f(pi || p), the sum of p f(pi/p).

        w    = pi(y|x) / q(y|x),  t = pi(y|x) / p(y|x),  constants
        loss = w (f'(t) + b) log pi(y|x)

    averaged over examples sampled from q. b, the running mean of -f'(t) under the policy, lowers
    the variance. The value has no meaning; the gradient is 0 in expectation where pi is p. f' is

        js   log(2t/(1 + t))     forward_kl  -1/t         chi2          1 - 1/t^2
        tv   sign(t - 1)/2       reverse_kl  log t + 1    reverse_chi2  2 (t - 1)

    Args:
      policy: the sampled response under the policy. Reads `logp`, [B].
      batch: `behavior_logp`, [B], log q(y|x), nats, under the model that sampled, as it sampled;
        `target_logp`, [B], log p(y|x) = log P(y|x) - log Z(x), nats, under the normalized target;
        `weight`, [B], 0 for padding.
      state: the running mean b.
      divergence: the divergence f: `forward_kl` is KL(p || pi), `reverse_kl` is KL(pi || p).
      decay: decay of the running mean per update.

    Returns:
      The loss, [B] metrics `rewards/response` (-log t, nats), `weights/response` (w) and
      `logps/response`, and the next state.

    Source:
      Paper: Go et al. 2023, arXiv:2302.08215.
      Code: naver/disco@5ea6fde.
      Differences: w f'(t) is one exponential, so that no rare response overflows, clipped at e^30.
      b is an exponential average that includes this batch and weighs by w; disco's is a plain mean
      over the last 1024 samples. The caller estimates Z.
    """
    logp = stop_gradient(policy.response.logp)
    log_w = logp - batch["behavior_logp"]
    log_t = logp - batch["target_logp"]
    w = _exp(log_w)
    reward = -_weighted_slope(log_w, log_t, divergence)
    loss = (state.mean * w - reward) * policy.response.logp
    metrics = {"rewards/response": -log_t, "weights/response": w, "logps/response": logp}
    mean = weighted_mean(reward, batch["weight"])
    mean = jnp.where(state.seen > 0, decay * state.mean + (1 - decay) * mean, mean)
    return per_example(loss), metrics, Baseline(mean=mean, seen=jnp.ones_like(state.seen))


def _exp(x: Array) -> Array:
    return jnp.exp(jnp.minimum(x, LARGEST))


def _weighted_slope(log_w: Array, log_t: Array, divergence: Divergence) -> Array:
    """The product w f'(t), [B]; powers of t are added to w in the exponent."""
    w = _exp(log_w)
    if divergence == "js":
        return w * (-LOG_HALF - softplus(-log_t))
    if divergence == "forward_kl":
        return -_exp(log_w - log_t)
    if divergence == "reverse_kl":
        return w * (log_t + 1.0)
    if divergence == "tv":
        return 0.5 * w * jnp.sign(log_t)
    if divergence == "chi2":
        return w - _exp(log_w - 2.0 * log_t)
    return 2.0 * (_exp(log_w + log_t) - w)
