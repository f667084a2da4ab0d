"""Random batches of statistics for objectives, and the value and gradient of a loss on them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.core import stats
from jaxalign.core.stats import reduce_tokens
from jaxalign.core.types import select_rows
from jaxalign.objectives import OBJECTIVES


def sequence_stats(log_odds, mask, needs=(stats.logp, stats.log_complement), ref=None):
    """The statistics of the head for token log-odds [B, T] and a mask [B, T].

    The vocabulary has two tokens, whose embeddings are orthogonal. `ref` are the log-odds under the
    reference, for joint statistics.
    """
    token = {"logp": -jax.nn.softplus(-log_odds), "log_complement": -jax.nn.softplus(log_odds)}
    target = jnp.zeros(log_odds.shape, jnp.int32)
    logits, ref_logits = (
        None if x is None else jnp.stack([x, jnp.zeros_like(x)], -1) for x in (log_odds, ref)
    )
    needs = [s for s in needs if ref_logits is not None or not s.joint]
    for s in needs:
        if s.name not in token:
            token[s.name] = s(logits, target, ref_logits, jnp.eye(2))
    return reduce_tokens({s.name: token[s.name] for s in needs}, mask)


def layout(o, log_odds, masks, ref=None, layers=None):
    """The responses in an objective's data layout, with the statistics of its `needs` only.

    Args:
      o: the objective.
      log_odds: {row: [B, T]}.
      masks: {row: [B, T]}.
      ref: log-odds under the reference, for joint statistics.
      layers: {row: [B, N, T]} means of layers, for statistics of layers.
    """
    rows = {r: sequence_stats(log_odds[r], masks[r], o.needs, ref and ref[r]) for r in log_odds}
    for r, y in rows.items() if layers else ():
        found = {s.name: jnp.where(masks[r], s.fn(layers[r], masks[r]), 0.0) for s in o.layers}
        rows[r] = y.replace(token=y.token | found)
    if o.layout.many:
        return select_rows(o.data, jax.tree.map(lambda *x: jnp.stack(x, 1), *rows.values()))
    return o.data(**rows)


def rows_of(o):
    """The names of the responses in a case; a row of many responses has three."""
    *first, last = o.layout.responses
    return (*first, *(f"{last}[{k}]" for k in range(3))) if o.layout.many else o.layout.responses


# The ranges of the columns, except for the label and the weight.
RANGES = {
    "baseline": (-1.0, 1.0),
    "behavior_logp": (-5.0, -0.5),
    "density_ratio": (0.3, 12.0),
    "margin": (-1.0, 2.0),
    "preference": (0.55, 0.95),
    "preference_gap": (0.1, 0.9),
    "target_logp": (-5.0, -0.5),
}
# With seed 0 both sides have the same order, so no pair is matched to another.
OTHER_SEED = {"aot": 3, "aot_unpaired": 3}


def draw_columns(rng, b):
    """Every column {name: [b]}, except for the label and the weight."""
    columns = {k: rng.uniform(*ends, b) for k, ends in RANGES.items()}
    columns["score_rejected"] = rng.normal(0.0, 2.0, b)
    columns["score_chosen"] = columns["score_rejected"] + rng.uniform(0.2, 3.0, b)
    return columns


def draw(o, seed=0, b=4, t=5, scale=2.0, shift=1.0):
    """A random case: log-odds of policy, ref and start, layers of the ref, masks, columns.

    Some responses have a probability near 1, most do not; policy and reference are independent.
    The last response of example 0 is the only one of one token.
    """
    rng = np.random.default_rng(seed + OTHER_SEED.get(o.name, 0))

    def rows():
        x = {r: rng.normal(shift, scale, (b, t)) for r in rows_of(o)}
        x[rows_of(o)[0]][0] += 5.0
        if "chosen" in x and "rejected" in x:
            # The two responses differ in their first token, so they exclude each other.
            x["rejected"][:, 0] = np.minimum(x["rejected"][:, 0], -x["chosen"][:, 0] - 0.5)
        return {r: jnp.asarray(v, jnp.float32) for r, v in x.items()}

    lengths = {r: np.maximum(rng.integers(1, t + 1, b), 2) for r in rows_of(o)}
    lengths[rows_of(o)[-1]][0] = 1
    masks = {r: jnp.arange(t)[None, :] < n[:, None] for r, n in lengths.items()}
    label = rng.permutation(np.arange(b) % 2)
    case = {"policy": rows(), "ref": rows(), "masks": masks}
    case["key"] = jax.random.split(jax.random.key(seed), b)
    columns = {"label": label, "weight": np.ones(b)} | draw_columns(rng, b)
    columns["scores"] = rng.normal(size=(b, 3))
    case["start"] = rows()
    layers = {r: rng.normal(size=(b, 3, t)) for r in rows_of(o)}
    case["layers"] = {r: jnp.asarray(x, jnp.float32) for r, x in layers.items()}
    return case | {"columns": {k: jnp.asarray(v, jnp.float32) for k, v in columns.items()}}


def inputs(o, case, state=None):
    """The arguments of an objective as in the step, with the declared columns only."""
    if o.init_state is not None and state is None:
        state = o.init_state()
    return {
        "policy": layout(o, case["policy"], case["masks"], case["ref"]),
        "ref": layout(o, case["ref"], case["masks"], layers=case["layers"]),
        "start": layout(o, case["start"], case["masks"]),
        "batch": {k: case["columns"][k] for k in o.columns},
        "state": state,
        "key": case["key"],
    }


def call(o, case, state=None, **hyper):
    """(loss, metrics) or (loss, metrics, state)."""
    return o.bind(**hyper)(**inputs(o, case, state))


def train_call(o, case, state=None, **hyper):
    """Call an objective as the training step does: the next state first, then the loss."""
    out = call(o, case, state, **hyper)
    return call(o, case, out[2], **hyper) if o.init_state is not None else out


def reduce(loss, weight):
    """A `Loss` and example weights [B] -> the scalar that is differentiated."""
    return loss.mean(weight)


def value_and_grad(o, case, state=None, **hyper):
    """The scalar, and its gradient with respect to the policy's token log-odds {row: [B, T]}."""
    words, numbers = split(o, hyper)
    (loss, _), grad = _compiled(o.name, words)(case["policy"], case, state, numbers)
    return loss, grad


def split(o, hyper):
    """(what is compiled in, the numbers that are arguments) of hyper-parameters and defaults."""
    given = {k: p.default for k, p in o.hyper.items() if p.default is not p.empty} | hyper
    numbers = {k: v for k, v in given.items() if isinstance(v, float)}
    return tuple(sorted((k, v) for k, v in given.items() if k not in numbers)), numbers


@functools.cache
def _compiled(name, words):
    return compiled(OBJECTIVES[name], dict(words))


def compiled(o, words):
    """(policy, case, state, numbers) -> ((scalar, metrics), gradient), jitted."""

    def fn(policy, case, state, numbers):
        out = train_call(o, case | {"policy": policy}, state, **words, **numbers)
        return reduce(out[0], case["columns"]["weight"]), out[1]

    return jax.jit(jax.value_and_grad(fn, has_aux=True))


def ragged_logp(log_odds, masks):
    """{row: [B, T]} log-odds -> {row: [[T_i]]} float64 log-probabilities."""
    return {
        r: [
            -np.logaddexp(0.0, -np.asarray(m, np.float64)[np.asarray(k)])
            for m, k in zip(log_odds[r], masks[r], strict=True)
        ]
        for r in log_odds
    }


def oracle_columns(case):
    """The columns of a case, and everything else that an oracle reads.

    `start` has the form of `ref`; `layers` are means of the reference's layers; a key draws
    `uniform` in [0, 1) for each token and `gumbel` for each example.
    """
    t = next(iter(case["masks"].values())).shape[-1]
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (t,)))(case["key"])
    draws = {"uniform": uniform, "gumbel": jax.vmap(jax.random.gumbel)(case["key"])}
    columns = {k: np.asarray(v) for k, v in (case["columns"] | draws).items()}
    layers = {
        r: [
            np.asarray(x, np.float64)[:, np.asarray(k)]
            for x, k in zip(xs, case["masks"][r], strict=True)
        ]
        for r, xs in case["layers"].items()
    }
    return columns | {"start": ragged_logp(case["start"], case["masks"]), "layers": layers}


def oracle_value_and_grad(oracle, case, previous=None, **hyper):
    """The oracle's loss, and its gradient with respect to log-odds, {row: [B, T]}."""

    def arguments(case):
        columns = oracle_columns(case)
        policy, ref = (ragged_logp(case[k], case["masks"]) for k in ("policy", "ref"))
        return policy, ref, columns

    before = None if previous is None else arguments(previous)
    loss, grad = oracle(*arguments(case), before, **hyper)
    dense = {}
    for r, log_odds in case["policy"].items():
        m, mask = np.asarray(log_odds, np.float64), np.asarray(case["masks"][r])
        dense[r] = np.zeros(m.shape)
        for i, g in enumerate(grad[r]):
            dense[r][i, mask[i]] = g / (1 + np.exp(m[i, mask[i]]))
    return loss, dense


def flat(grad):
    return np.concatenate([np.asarray(grad[r], np.float64).ravel() for r in sorted(grad)])


def assert_matches(ours, oracle):
    """Equal to 1e-5; the absolute tolerance is for differences of float32 sums."""
    # 3e-7: a loss that may be negative, as robust DPO, is a difference of two terms near log 2.
    np.testing.assert_allclose(ours[0], oracle[0], rtol=1e-5, atol=3e-7)
    a, b = flat(ours[1]), flat(oracle[1])
    # 1e-30: much smaller numbers are 0 in float32.
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * np.abs(b).max() + 1e-30)


LOGITS = {
    "chosen": [[1, 0.5, -0.5, 0.2], [0.1, 1.2, -0.3, 0.4], [0.7, -0.2, 0.3, 0.9]],
    "rejected": [[0.2, 0.9, 0.1, -0.6], [1.1, -0.4, 0.6, 0.0]],
}
REF_LOGITS = {
    "chosen": [[0.8, 0.6, -0.4, 0.1], [0.3, 0.9, -0.1, 0.5], [0.5, 0.1, 0.2, 1.1]],
    "rejected": [[0.1, 0.7, 0.4, -0.5], [0.9, -0.2, 0.8, 0.1]],
}
TARGETS = {"chosen": [0, 1, 3], "rejected": [2, 0]}


def logit_grads(name, **hyper):
    """Gradient of a paired objective with respect to the logits of the example above."""
    o = OBJECTIVES[name]
    longest = max(map(len, TARGETS.values()))

    def build(logits, ref):
        out = {}
        for row, z in logits.items():
            y, pad = jnp.asarray(TARGETS[row]), (0, longest - len(TARGETS[row]))
            token = {s.name: jnp.pad(s(z, y, ref[row]), pad)[None] for s in o.needs}
            out[row] = reduce_tokens(token, jnp.arange(longest)[None] < len(y))
        return o.data(**out)

    def as_arrays(tree):
        return {k: jnp.asarray(v, jnp.float32) for k, v in tree.items()}

    ref_logits = as_arrays(REF_LOGITS)
    ref = build(ref_logits, ref_logits)

    def fn(logits):
        weight, policy = jnp.ones(1), build(logits, ref_logits)
        out = o.bind(**hyper)(policy=policy, ref=ref, batch={"weight": weight})
        return reduce(out[0], weight)

    return jax.value_and_grad(fn)(as_arrays(LOGITS))
