"""Token statistics of the head against float64, value and gradients of hidden states and head."""

from __future__ import annotations

from typing import Any

import numpy as np

from .part import arguments, check, turn

BOUNDS = {"float32": (1e-5, 1e-5), "bfloat16": (1e-5, 1e-2)}
"""Of a value and of a gradient, |found - float64| / |float64|. bfloat16 inputs are exact in
float64 and the logits are float32; only the gradients are rounded to bfloat16."""


def formula(hidden: Any, head: Any, target: Any, pull: Any) -> dict[str, Any]:
    """Log-probability and log-complement [M] and the gradients of both sums, in float64.

    Args:
      hidden: [M, D].
      head: [D, V].
      target: [M].
      pull: cotangents of the two statistics, [2, M].
    """
    hidden, head = (np.asarray(x, np.float64) for x in (hidden, head))
    logits, at = hidden @ head, np.arange(len(target))
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    chosen = p[at, target]
    others = p.copy()
    others[at, target] = 0.0
    rest = others.sum(-1)  # not 1 - p, which has no digits where p is nearly 1
    # d log p / dz = onehot - p;  d log(1 - p) / dz = -p / (1 - p) (onehot - p)
    slope = pull[0] - pull[1] * chosen / rest
    d_logits = -slope[:, None] * p
    d_logits[at, target] = slope * rest
    return {
        "logp": np.log(chosen),
        "log_complement": np.log(rest),
        "d hidden": d_logits @ head.T,
        "d head": hidden.T @ d_logits,
    }


def main() -> None:
    """Compare in both dtypes."""
    args = arguments(__doc__).parse_args()
    import jax
    import jax.numpy as jnp

    from jaxalign.core import stats
    from jaxalign.models.layers.head import Head
    from jaxalign.update.head import token_stats

    turn()
    jax.config.update("jax_default_matmul_precision", "highest")
    scored, width, vocab = (64, 32, 512) if args.quick else (512, 512, 32000)
    keys = jax.random.split(jax.random.key(0), 4)
    target = jax.random.randint(keys[2], (1, scored), 0, vocab)
    pull = jax.random.normal(keys[3], (2, scored), "float32")
    for dtype, bounds in BOUNDS.items():
        hidden = jax.random.normal(keys[0], (1, scored, width), dtype)
        head = (3 / width**0.5 * jax.random.normal(keys[1], (width, vocab))).astype(dtype)

        def both(hidden: Any, head: Any) -> Any:
            needs = (stats.logp, stats.log_complement)
            found = token_stats(hidden, Head(head), target, needs)
            return jnp.stack([found[stat.name][0] for stat in needs])

        value, back = jax.vjp(jax.jit(both), hidden, head)
        gradients = back(pull)
        found = dict(zip(("logp", "log_complement"), value, strict=True))
        found |= {"d hidden": gradients[0][0], "d head": gradients[1]}
        wanted = formula(hidden[0], head, np.asarray(target[0]), np.asarray(pull, np.float64))
        for name, x in found.items():
            error = np.asarray(x, np.float64) - wanted[name]
            relative = float(np.linalg.norm(error) / np.linalg.norm(wanted[name]))
            check(args.out, f"{dtype}: {name}", relative, bounds[name.startswith("d ")])


if __name__ == "__main__":
    main()
