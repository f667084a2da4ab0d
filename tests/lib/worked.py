"""The pair and the batches of the worked values, and objectives evaluated on them."""

import jax
import jax.numpy as jnp
import numpy as np
from lib.objectives import draw, reduce, train_call

from jaxalign.core.stats import reduce_tokens
from jaxalign.core.types import SequenceStats
from jaxalign.objectives import OBJECTIVES

CHOSEN = [-2.1, -3.0, -1.2, -4.0, -2.0]
REF_CHOSEN = [-2.5, -2.8, -1.5, -4.2, -2.0]
REJECTED = [-1.0, -2.6, -2.0, -3.1, -1.9, -2.2, -1.3]
REF_REJECTED = [-1.2, -2.0, -2.1, -3.3, -1.5, -2.4, -1.2]
PAIR = {"chosen": [CHOSEN], "rejected": [REJECTED]}
REF_PAIR = {"chosen": [REF_CHOSEN], "rejected": [REF_REJECTED]}
LP, RP = [-12.3, -14.1, -20.0, -8.5], [-13.0, -13.7, -19.2, -9.9]
KL, REF_KL = [-30.0, -28.4, -25.1, -33.0], [-30.6, -28.1, -25.9, -33.3]


def rows(**tokens):
    """Token log-probabilities {row: [[...]]} -> [B, 7] arrays and masks."""
    width = 7
    values, masks = {}, {}
    for row, examples in tokens.items():
        padded = [list(y) + [0.0] * (width - len(y)) for y in examples]
        values[row] = jnp.asarray(padded, jnp.float32)
        masks[row] = jnp.asarray([[t < len(y) for t in range(width)] for y in examples])
    return values, masks


def worked(o, policy, ref, columns=None, state=None, **hyper):
    """Loss, and {row: [B]} gradient with respect to each row's summed log-probability."""
    values, masks = rows(**policy)
    ref_values, _ = rows(**ref)

    def build(values):
        return o.data(**{r: reduce_tokens({"logp": values[r]}, masks[r]) for r in values})

    def fn(values):
        out = o.bind(**hyper)(
            policy=build(values), ref=build(ref_values), batch=columns, state=state
        )
        return reduce(out[0], jnp.ones(len(next(iter(values.values())))))

    loss, grad = jax.value_and_grad(fn)(values)
    return float(loss), {r: np.asarray(g)[:, 0] for r, g in grad.items()}


def sums(tokens):
    """Statistics of responses of equal length, {"response": [[...]]}."""
    logp = jnp.stack([jnp.asarray(y, jnp.float32) for y in tokens["response"]])
    return reduce_tokens({"logp": logp}, jnp.ones(logp.shape, bool))


def single_tokens(logps):
    """[...] summed log-probabilities -> statistics of one example, of responses of one token."""
    logp = jnp.asarray(logps, jnp.float32)[None]
    ones = jnp.ones_like(logp)
    return SequenceStats(logp, ones, ones[..., None], {"logp": logp[..., None]})


def at_reference(name, **hyper):
    """A random case whose policy is its reference, and the results of the objective on it."""
    case = draw(OBJECTIVES[name], 0)
    case["policy"] = case["ref"]
    return case, train_call(OBJECTIVES[name], case, **hyper)
