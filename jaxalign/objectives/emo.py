"""Earth mover distance optimization, for fine-tuning on demonstrations."""

from __future__ import annotations

from typing import Literal

from jax.lax import stop_gradient

from ..core import stats
from ..core.objective import objective
from ..core.types import Demos, Loss, Metrics, per_token

TINY = 1e-10  # avoids a division by 0


@objective(Demos, source="Ren et al. 2024, arXiv:2310.04691", needs=(stats.logp, stats.earth_mover))
def emo(policy: Demos, *, scale: Literal["nll", "distance"] = "nll") -> tuple[Loss, Metrics]:
    """EMO: half likelihood, half the distance that probability must move in embedding space.

        d_t  = sum_v pi(v|x, y_<t) (1 - cos(e_v, e_{y_t}))
        loss = sum_t 1/2 [ -log pi(y_t) + (-log pi(y_t) / d_t) d_t ]

    averaged over tokens; the ratio is a constant, so that both halves weigh the same, and the value
    is the negative log-likelihood. The e are the rows of the output embedding, constants: a token
    close to the correct one costs less than a distant one.

    Args:
      policy: the response under the policy. Reads token `logp` and `earth_mover`, [B, T].
      scale: the half that sets the scale: `nll` as above; `distance`, the sum of d_t and -(d_t /
        -log pi(y_t)) log pi(y_t), whose value is 2 d_t.

    Returns:
      The loss, and [B] metrics `logps/response` and `distance` (mean of d_t).

    Source:
      Paper: Ren et al. 2024, arXiv:2310.04691.
      Code: DRSY/EMO@14da9d5, `mode` 1 and 2.
      Differences: the code adds pi(y_t) to the value of d_t, not to its gradient, which changes the
      ratio; here d_t is the paper's distance, 0 where pi(y_t) is 1.
    """
    response = policy.response
    nll, distance = -response.token["logp"], response.token["earth_mover"]
    if scale == "nll":
        loss = 0.5 * (nll + stop_gradient(nll / distance.clip(TINY)) * distance)
    else:
        loss = distance + stop_gradient(distance / nll.clip(TINY)) * nll
    total = (response.mask * loss).sum(-1)
    mean = (response.mask * distance).sum(-1) / response.length.clip(1.0)
    return per_token(total, response.length), {"logps/response": response.logp, "distance": mean}
