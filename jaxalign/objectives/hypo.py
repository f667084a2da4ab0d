"""The online half of hybrid preference optimization: a reverse KL on sampled responses."""

from __future__ import annotations

from jax.lax import stop_gradient

from ..core.objective import objective
from ..core.types import Array, Demos, Loss, Metrics, per_example
from ._common import NonNegative, log_ratio


@objective(Demos, source="Song et al. 2024, HyPO, arXiv:2406.01462", columns=("baseline",))
def hypo_kl(
    policy: Demos, ref: Demos, batch: dict[str, Array], *, lam: NonNegative = 1e-4
) -> tuple[Loss, Metrics]:
    """HyPO's KL: on samples of the policy, its gradient is the gradient of KL(pi || pi_ref).

        d    = log pi(y|x)/pi_ref(y|x) - baseline,  constant
        loss = lam d log pi(y|x)

    averaged over examples, each sampled from the current policy. HyPO adds this loss to DPO on
    pairs. Its value has no meaning: watch `kl`. Its gradient is 0 when the policy is the reference
    and the baseline is 0.

    Args:
      policy: the sampled response under the policy. Reads `logp`, [B].
      ref: the sampled response under the frozen reference. Reads `logp`, [B].
      batch: `baseline`, [B], nats: the mean log-ratio of the other responses sampled for the
        prompt, or 0. Any number that does not depend on the response leaves the expectation
        unchanged; this one lowers the variance.
      lam: weight of the KL, per nat.

    Returns:
      The loss, and [B] metrics `kl` (log-ratio, nats; its mean estimates the KL) and
      `logps/response`.

    Source:
      Paper: Song et al. 2024, arXiv:2406.01462. UNVERIFIED: lam, and its baseline.
      Differences: none known. The HyPO of arXiv:2602.11902 is another method.
    """
    ratio = stop_gradient(log_ratio(policy.response, ref.response))
    loss = lam * (ratio - batch["baseline"]) * policy.response.logp
    return per_example(loss), {"kl": ratio, "logps/response": policy.response.logp}
