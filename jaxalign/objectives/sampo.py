"""DPO on equally many tokens of both responses (SamPO)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid

from ..core.objective import objective
from ..core.types import Array, Loss, Metrics, Pairs, SequenceStats, per_example
from ._common import Positive, pair_metrics


@objective(Pairs, source="Lu et al. 2024, arXiv:2406.10957, Eq. 9")
def sampo(policy: Pairs, ref: Pairs, key: Array, *, beta: Positive = 0.1) -> tuple[Loss, Metrics]:
    """SamPO: DPO on as many tokens of the longer response as the shorter one has.

        D(y) = sum_{t in S(y)} log pi(y_t|x, y_<t)/pi_ref(y_t|x, y_<t)
        loss = -log sigmoid(beta (D(y_w) - D(y_l)))

    averaged over pairs; S(y) is min(|y_w|, |y_l|) tokens of y, drawn without replacement, so that
    the length of a response does not change the margin. The loss is log 2 when the policy is the
    reference.

    Args:
      policy: both responses under the policy. Reads `token["logp"]`, [B, T], and `length`.
      ref: both responses under the frozen reference. Reads `token["logp"]`.
      key: random keys, [B], one per pair and update; each draws the tokens of its pair.
      beta: reward per nat of log-ratio; larger keeps the policy nearer the reference.

    Returns:
      The loss, and [B] metrics `rewards/*` (of the tokens drawn) and `logps/*`.

    Source:
      Paper: Lu et al. 2024, arXiv:2406.10957; the number of the equation is UNVERIFIED.
      Code: LuJunru/SamPO.
      Differences: none from the paper. The authors' code draws once for the policy and again for
      the reference, so that its log-ratios compare different tokens and are not 0 at the reference.
    """
    uniform = jax.vmap(lambda k: jax.random.uniform(k, policy.chosen.mask.shape[-1:]))(key)
    n = jnp.minimum(policy.chosen.length, policy.rejected.length)
    chosen = beta * _sampled(policy.chosen, ref.chosen, uniform, n)
    rejected = beta * _sampled(policy.rejected, ref.rejected, uniform, n)
    return per_example(-log_sigmoid(chosen - rejected)), pair_metrics(policy, chosen, rejected)


def _sampled(policy: SequenceStats, ref: SequenceStats, uniform: Array, n: Array) -> Array:
    """Log-ratio of the n tokens of a response with the smallest draws, nats."""
    order = jnp.argsort(jnp.where(policy.mask > 0, uniform, 2.0), -1)
    kept = jnp.argsort(order, -1).astype(jnp.float32) < n[:, None]
    return jnp.where(kept, policy.token["logp"] - ref.token["logp"], 0.0).sum(-1)
