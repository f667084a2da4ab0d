"""An objective is one function: write it, declare its inputs, and call it.

A recipe trains with it as it is: `objective: {file: add_an_objective.py, name: my_ipo, tau: 0.5}`.
In the library the same function is a file in `jaxalign/objectives/`, a line in the index there and
a float64 formula in `tests/oracles/`. Settings, `--help` and the tests of the contract come from
the signature.
"""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp
from annotated_types import Gt

from jaxalign import Loss, Pairs, objective, response
from jaxalign.core.types import Metrics, per_example


@objective(Pairs, source="Azar et al. 2023, arXiv:2310.12036, Eq. 17")
def my_ipo(
    policy: Pairs, ref: Pairs, *, tau: Annotated[float, Gt(0)] = 0.1
) -> tuple[Loss, Metrics]:
    """IPO, the difference of two log-ratios is regressed on 1 / (2 tau).

        h    = log pi(y_w|x)/pi_ref(y_w|x) - log pi(y_l|x)/pi_ref(y_l|x)
        loss = (h - 1 / (2 tau))^2

    averaged over pairs. It is 1 / (4 tau^2) when the policy is the reference.

    Args:
      policy: chosen and rejected under the policy. Reads `logp`, [B].
      ref: the same under the frozen reference. Reads `logp`, [B].
      tau: strength of the regularization towards the reference, per nat.
    """
    chosen = policy.chosen.logp - ref.chosen.logp
    rejected = policy.rejected.logp - ref.rejected.logp
    h = chosen - rejected
    return per_example((h - 1 / (2 * tau)) ** 2), {"margins": h}


def main() -> None:
    ref = Pairs(response(jnp.full((2, 3), -1.0)), response(jnp.full((2, 3), -2.0)))

    def loss(chosen: jax.Array) -> jax.Array:
        policy = Pairs(response(chosen), ref.rejected)
        return my_ipo(policy, ref, tau=0.5)[0].mean()

    at_ref, gradient = jax.value_and_grad(loss)(ref.chosen.token["logp"])
    print(f"loss at the reference {at_ref:.3f}, expected {1 / (4 * 0.5**2):.3f}")
    print(f"gradient per token of the chosen responses {gradient[0, 0]:.3f}: it raises them")


if __name__ == "__main__":
    main()
