"""How many digits of each loss and of its gradient are right: a grid against the float64 oracles.

    cd tests; python -m lib.digits [--coarse] [OBJECTIVE ...]

prints for each objective and each set of hyper-parameters of its oracle the worst relative errors
of value and gradient, the change that rounding every input to float32 makes there, and the worst
error that such changes do not explain. A point of the grid is a batch of its own, of as few
examples as the oracle takes, whose first two responses have given log-ratios and lengths. Oracle
and objective get the same float32 log-odds, columns and hyper-parameters.
"""

import functools
import itertools
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from lib.objectives import (
    call,
    draw,
    draw_columns,
    oracle_columns,
    reduce,
    rows_of,
    split,
    train_call,
)
from oracles import HYPER, ORACLES

from jaxalign.objectives import OBJECTIVES

FINE = (-60, -50, -30, -20, -8, -1, -0.1, 0.1, 1, 8, 20, 50, 60)
COARSE = (-60, -20, -7, 0.5, 1, 12, 60)
"""Log-ratios; their number is odd, so that each meets all `LENGTHS`."""
LENGTHS = ((1, 2), (2, 60), (60, 4000), (4000, 1))
"""Lengths of the chosen and of the rejected response; a single response has the first."""
BATCH = {"beta_dpo": 2}
"""Examples of a batch, where one is too few: a standard deviation takes two."""
TOGETHER = ("gpm",)
"""Objectives whose slopes are compared with the greatest of both responses: a normalized vector has
none along itself."""

DIGITS = 1e-5
"""Relative error that needs no reason."""
ALIGNED = {"gpm": 5e-5}
"""Greater ones: near a score of 1, its distance from 1 and the slopes have the digits of 1."""
ROUNDINGS = 16
"""How many times the change made by rounding every input to float32 an error may be."""
SMALLEST = 1e-30
"""Smaller values and slopes are not compared: they approach the least number of float32."""


class Error(NamedTuple):
    """Relative errors of one point of the grid, value and gradient."""

    found: tuple[float, float]
    rounding: tuple[float, float]
    """The change that rounding the inputs makes to the exact result; 0 where nobody asked."""

    @property
    def unexplained(self):
        """The errors that rounding of the inputs does not explain."""
        pairs = zip(self.found, self.rounding, strict=True)
        return tuple(e if e > ROUNDINGS * r else 0.0 for e, r in pairs)


def responses(rng, ratio, length, width):
    """Log-probabilities under policy and reference, [width]; the sums of `length` differ by ratio.

    Two responses of one token have less than the whole probability.
    """
    high = -0.1 - rng.exponential(0.7, width)
    high[0] -= 0.8
    low = high * rng.uniform(0.5, 1.5, width)
    low[:length] *= high[:length].sum() / low[:length].sum()
    low[:length] -= abs(ratio) * rng.dirichlet(np.ones(length))
    return (high, low) if ratio > 0 else (low, high)


def log_odds(logp):
    return np.float32(logp - np.log(-np.expm1(logp)))


@functools.cache
def grid(rows, batch, ratios, seed=0):
    """(log-ratios, lengths) of each point, and the case of all points, leading axes [G, batch]."""
    rng = np.random.default_rng(seed)
    width = max(itertools.chain(*LENGTHS))
    seconds = ratios if len(rows) > 1 else (0.0,) * len(LENGTHS)
    pairs = list(itertools.product(ratios, seconds))
    points = [(*pair, LENGTHS[i % len(LENGTHS)]) for i, pair in enumerate(pairs)]
    parts = {k: {r: [] for r in rows} for k in ("policy", "ref", "start", "masks")}
    for a, b, n in points:
        for k, r in enumerate(rows):
            ratio, length = (a, b)[k] if k < 2 else rng.normal(), n[k % 2]
            for _ in range(batch):
                policy, ref = responses(rng, ratio, length, width)
                start, _ = responses(rng, rng.normal(), length, width)
                parts["policy"][r].append(log_odds(policy))
                parts["ref"][r].append(log_odds(ref))
                parts["start"][r].append(log_odds(start))
                parts["masks"][r].append(np.arange(width) < length)
    lead = len(points), batch
    case = {
        k: {r: np.stack(x).reshape(*lead, width) for r, x in part.items()}
        for k, part in parts.items()
    }
    count = len(points) * batch
    columns = draw_columns(rng, count) | {"label": np.arange(count) % 2, "weight": np.ones(count)}
    first = ragged(parts["policy"], parts["masks"])[rows[0]]
    first = np.array([y.sum() for y in first])
    near = np.repeat([np.clip(a, -12, 12) for a, _, _ in points], batch)
    columns["target_logp"] = first - near
    columns["behavior_logp"] = first - rng.uniform(-2, 2, count)
    case["columns"] = {k: np.float32(x).reshape(lead) for k, x in columns.items()}
    case["columns"]["scores"] = np.float32(rng.normal(size=(*lead, 3)))
    case["layers"] = {r: np.float32(rng.normal(size=(*lead, 3, width))) for r in rows}
    keys = jax.random.split(jax.random.key(seed), count)
    case["uniform"] = np.asarray(jax.vmap(lambda k: jax.random.uniform(k, (width,)))(keys))
    case["uniform"] = case["uniform"].reshape(*lead, width)
    case["gumbel"] = np.asarray(jax.vmap(jax.random.gumbel)(keys)).reshape(lead)
    return points, case | {"key": keys.reshape(lead)}


@functools.cache
def asked(rows, batch, ratios, seed=0):
    """What the oracle is given at each point, the masks, and d log-probability / d log-odds."""
    points, case = grid(rows, batch, ratios, seed)
    out = []
    for g in range(len(points)):
        one = {k: jax.tree.map(lambda x, g=g: x[g], x) for k, x in case.items() if k != "key"}
        masks = one["masks"]
        odds = {r: m[masks[r]].astype(np.float64) for r, m in one["policy"].items()}
        out.append((Given.of(one), masks, {r: 1 / (1 + np.exp(m)) for r, m in odds.items()}))
    return out


@functools.cache
def program(name, words):
    """(policy, case, state, numbers) -> values [G] and gradients, leading axis [G]."""

    def one(policy, case, state, numbers):
        def fn(policy):
            given = case | {"policy": policy}
            out = train_call(OBJECTIVES[name], given, state, **dict(words), **numbers)
            return reduce(out[0], case["columns"]["weight"])

        return jax.value_and_grad(fn)(policy)

    return jax.jit(jax.vmap(one, (0, 0, None, None)))


class Given(NamedTuple):
    """What an oracle is given."""

    policy: dict
    ref: dict
    columns: dict

    @classmethod
    def of(cls, case):
        policy, ref, start = (ragged(case[k], case["masks"]) for k in ("policy", "ref", "start"))
        columns = case["columns"] | {k: case[k] for k in ("uniform", "gumbel")} | {"start": start}
        columns["layers"] = {
            r: [np.float64(x[:, k]) for x, k in zip(xs, case["masks"][r], strict=True)]
            for r, xs in case["layers"].items()
        }
        return cls(policy, ref, columns)

    def rounded(self, rng):
        """The same with every number off by up to half a unit in the last place of float32."""

        def moved(x):
            return x * (1 + 2.0**-24 * rng.uniform(-1, 1, np.shape(x)))

        sums = {r: 1 + 2.0**-24 * rng.uniform(-1, 1) for r in self.policy}

        def each(rows):
            return {r: [sums[r] * moved(y) for y in ys] for r, ys in rows.items()}

        kept = ("label", "weight", "uniform", "start", "layers")
        columns = {k: x if k in kept else moved(x) for k, x in self.columns.items()}
        columns["start"] = each(self.columns["start"])
        return Given(each(self.policy), each(self.ref), columns)


def ragged(log_odds, masks):
    """{row: [[T_i]]} float64 log-probabilities."""
    return {
        r: [
            -np.logaddexp(0.0, -np.asarray(m, np.float64)[np.asarray(k)])
            for m, k in zip(x, masks[r], strict=True)
        ]
        for r, x in log_odds.items()
    }


def exact(name, given, before, hyper, by_odds):
    """The oracle's value, and its slopes in log-odds, {row: [tokens of all examples]}."""
    loss, grad = ORACLES[name](*given, before, **hyper)
    return loss, {r: np.concatenate(g) * by_odds[r] for r, g in grad.items()}


def relative(a, b, size=None):
    """The greatest |a - b| / |b|, or / size."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    size = np.abs(b) if size is None else np.full(np.shape(b), size)
    error = np.abs(a - b) / np.maximum(size, SMALLEST)
    return float(np.max(np.where(size > SMALLEST, error, np.abs(a) > 2 * SMALLEST), initial=0.0))


def compared(name, found, wanted):
    """The relative errors of (value, slopes)."""
    size = max(np.abs(g).max() for g in wanted[1].values()) if name in TOGETHER else None
    slopes = [relative(found[1][r], g, size) for r, g in wanted[1].items()]
    return relative(found[0], wanted[0]), max(slopes)


def one_program(name):
    """The first hyper-parameters of an oracle, and those that differ from them in numbers alone."""
    first, *others = HYPER[name]
    words = split(OBJECTIVES[name], first)[0]
    return [first, *(hyper for hyper in others if split(OBJECTIVES[name], hyper)[0] == words)]


def errors(name, hyper, ratios, seed=0):
    """{point: `Error`} of an objective over a grid."""
    o = OBJECTIVES[name]
    points, case = grid(rows_of(o), BATCH.get(name, 1), ratios, seed)
    inexact = {k for k, v in hyper.items() if isinstance(v, float) and np.float32(v) != v}
    hyper = {k: float(np.float32(v)) if isinstance(v, float) else v for k, v in hyper.items()}
    words, numbers = split(o, hyper)
    numbers = {k: jnp.float32(v) for k, v in numbers.items()}
    state = before = None
    if o.init_state is not None:
        previous = draw(o, 1)
        state = call(o, previous, **hyper)[2]
        policy, ref = (ragged(previous[k], previous["masks"]) for k in ("policy", "ref"))
        before = policy, ref, oracle_columns(previous)
    read = ("policy", "ref", "start", "masks", "columns", "layers", "key")
    loss, grad = jax.device_get(
        program(name, words)(case["policy"], {k: case[k] for k in read}, state, numbers)
    )
    out = {}
    given_at = asked(rows_of(o), BATCH.get(name, 1), ratios, seed)
    for g, (point, (given, mask, by_odds)) in enumerate(zip(points, given_at, strict=True)):
        wanted = exact(name, given, before, hyper, by_odds)
        found = compared(name, (loss[g], {r: grad[r][g][mask[r]] for r in by_odds}), wanted)
        rounding = (0.0, 0.0)
        if max(found) > DIGITS:
            rng = np.random.default_rng(g)
            for _ in range(6):
                other = {k: hyper[k] * (1 + 2.0**-24 * rng.uniform(-1, 1)) for k in inexact}
                moved = exact(name, given.rounded(rng), before, hyper | other, by_odds)
                rounding = tuple(map(max, rounding, compared(name, moved, wanted)))
        out[point] = Error(found, rounding)
    return out


def table(names, ratios):
    """Print the worst errors of objectives."""
    for name in names:
        for hyper in HYPER[name]:
            found = errors(name, hyper, ratios)
            print(name, hyper or "")
            for k, what in enumerate(("value", "gradient")):
                at = max(found, key=lambda p, k=k: found[p].found[k])
                error = f"{found[at].found[k]:.1e} (rounding {found[at].rounding[k]:.1e})"
                left = max(e.unexplained[k] for e in found.values())
                print(f"  {what:8} {error} at {at}; unexplained {left:.1e}", flush=True)


if __name__ == "__main__":
    asked_for = [x for x in sys.argv[1:] if x != "--coarse"]
    table(asked_for or list(OBJECTIVES), COARSE if "--coarse" in sys.argv else FINE)
