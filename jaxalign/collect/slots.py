"""The programs that draw answers: a prompt is read once, and its answers are drawn in slots.

There are G groups of slots, each with a prompt, and m slots in a group, S = G m in all. The group
has the keys and values of its prompt, a slot the keys and values of its own answer alone. The
columns of the answers are a ring: all slots write their next token into the same column, so the
keys of a slot are the newest ones of its row, as many as it has drawn tokens.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..core.sharding import constrain
from ..core.types import Array
from ..models.cache import AXIS, Cache, Shared, merged, only, replaced, widened
from ..models.decoder import Model, Params
from .draw import How, draw

PIECE = 256
"""Most tokens of a prompt that are read at a time, which bounds the scores of its attention."""


class Prompts(NamedTuple):
    """Prompts that have been read, padded on the left to the same width; each [prompts, ...]."""

    hidden: Array  # [prompts, D] after the last token
    length: Array  # [prompts]
    cache: Cache


class Slots(NamedTuple):
    """The state of the drawing; the arrays of a slot that is done mean nothing."""

    prompts: Prompts  # of the groups
    key: Array  # [slots]
    step: Array  # [slots] tokens drawn, a stop token included
    stopped: Array  # [slots] bool
    done: Array  # [slots] bool
    hidden: Array  # [slots, D] after the last token
    tokens: Array  # [slots, max_new] drawn so far, a stop token included; -1 beyond
    logps: Array  # [slots, max_new] of each, the stop token included; 0 beyond
    sampler_logps: Array  # [slots, max_new]
    columns: Array  # [columns] 0, 1, ...: the columns of the ring
    at: Array  # [] the next one
    cache: Cache


@functools.partial(jax.jit, static_argnums=0)
def read(model: Model, params: Params, ids: Array, length: Array) -> Prompts:
    """Read prompts, piece by piece.

    Args:
      model: the decoder.
      params: its weights.
      ids: token ids, padded on the left, [prompts, width].
      length: tokens of each prompt, [prompts].
    """
    rows, width = ids.shape
    piece = math.gcd(width, PIECE)
    columns, pad = jnp.arange(width), (width - length)[:, None]

    def extended(carry: tuple[Array, Cache], at: Array) -> tuple[tuple[Array, Cache], None]:
        own = at + jnp.arange(piece)
        back = jnp.where(columns >= pad[:, :, None], own[:, None] - columns, -1)
        tokens = jax.lax.dynamic_slice_in_dim(ids, at, piece, 1)
        positions = jnp.maximum(own - pad, 0)
        hidden, cache = model.extend(params, carry[1], tokens, positions, back, at)
        return (hidden[:, -1], cache), None

    blank = jnp.zeros((rows, model.spec.width), model.dtype), model.init_cache(rows, width)
    (hidden, cache), _ = jax.lax.scan(extended, blank, jnp.arange(0, width, piece))
    return Prompts(hidden, length, cache)


class Sizes(NamedTuple):
    """Sizes of the arrays of `Slots`; static."""

    groups: int
    members: int  # slots of a group
    width: int  # of the prompts, in tokens
    columns: int  # of the ring


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def empty(model: Model, how: How, sizes: Sizes) -> Slots:
    """Groups without a prompt, whose slots are done."""
    slots = sizes.groups * sizes.members
    zeros = jnp.zeros((slots, how.max_new))
    count = jnp.zeros(slots, jnp.int32)
    hidden = jnp.zeros((slots, model.spec.width), model.dtype)
    return Slots(
        prompts=Prompts(
            hidden[: sizes.groups],
            count[: sizes.groups],
            model.init_cache(sizes.groups, sizes.width),
        ),
        key=jax.vmap(jax.random.key)(count),
        step=count,
        stopped=count > 0,
        done=count == 0,
        hidden=hidden,
        tokens=jnp.full((slots, how.max_new), -1, jnp.int32),
        logps=zeros,
        sampler_logps=zeros,
        columns=jnp.arange(sizes.columns),
        at=jnp.int32(0),
        cache=model.init_cache(slots, sizes.columns),
    )


@functools.partial(jax.jit, donate_argnums=0)
def begin(slots: Slots, prompts: Prompts, source: Array, seeds: Array, new: Array) -> Slots:
    """Give groups their next prompts, and begin answers in some slots.

    Args:
      slots: the state.
      prompts: prompts that have been read.
      source: the row of `prompts` that each group gets, or a negative number, [groups].
      seeds: the seed of each new answer, [slots] uint32.
      new: the slots that begin an answer, [slots] bool.
    """

    def given(old: Array, new: Array) -> Array:
        taken = (source >= 0).reshape(-1, *(1,) * (old.ndim - 1))
        return jnp.where(taken, new[source], old)

    held = slots.prompts
    held = Prompts(
        given(held.hidden, prompts.hidden),
        given(held.length, prompts.length),
        replaced(held.cache, prompts.cache, source),
    )
    group = jnp.arange(len(new)) // (len(new) // len(source))
    states = only(slots.cache, columned=False), only(held.cache, columned=False)
    fresh = new[:, None]
    return slots._replace(
        prompts=held,
        key=jnp.where(new, jax.vmap(jax.random.key)(seeds), slots.key),
        step=jnp.where(new, 0, slots.step),
        stopped=slots.stopped & ~new,
        done=slots.done & ~new,
        hidden=jnp.where(fresh, held.hidden[group], slots.hidden),
        tokens=jnp.where(fresh, -1, slots.tokens),
        logps=jnp.where(fresh, 0, slots.logps),
        sampler_logps=jnp.where(fresh, 0, slots.sampler_logps),
        cache=merged(
            only(slots.cache, columned=True), replaced(*states, jnp.where(new, group, -1))
        ),
    )


@functools.partial(jax.jit, static_argnums=1)
def grown(slots: Slots, columns: int) -> Slots:
    """The same slots with a larger ring."""
    held = len(slots.columns)
    return slots._replace(
        columns=jnp.arange(columns),
        at=jnp.int32(held),
        cache=widened(slots.cache, slots.at, columns),
    )


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def advance(
    model: Model, how: How, params: Params, slots: Slots, steps: int | Array, least: int | Array
) -> Slots:
    """Draw `steps` tokens of each answer, or fewer: until at least `least` slots are done.

    There are as many columns as an answer gets tokens.
    """

    def more(carry: tuple[Array, Slots]) -> Array:
        made, slots = carry
        return (made < steps) & (slots.done.sum() < least)

    def drawn(carry: tuple[Array, Slots]) -> tuple[Array, Slots]:
        made, slots = carry
        return made + 1, _next(model, how, params, slots)

    _, slots = jax.lax.while_loop(more, drawn, (jnp.int32(0), slots))
    names = ("step", "stopped", "done", "tokens", "logps", "sampler_logps")
    shown = {name: getattr(slots, name) for name in names}  # every host reads them
    return slots._replace(**{k: constrain(x, *(None,) * x.ndim) for k, x in shown.items()})


def _next(model: Model, how: How, params: Params, slots: Slots) -> Slots:
    """Draw the next token of each slot, and read it."""
    logits = constrain(model.head(params).logits(slots.hidden), "batch", None)
    token = draw(how, slots.key, slots.step, logits)
    ends = jnp.isin(token.id, jnp.array(how.stop, jnp.int32))
    place = jnp.where(slots.done, how.max_new, slots.step)  # beyond the end nothing is written

    def put(x: Array, new: Array) -> Array:
        return x.at[jnp.arange(len(place)), place].set(new, mode="drop")

    hidden, cache = _read_next(model, params, slots, token.id)
    step = jnp.where(slots.done, slots.step, slots.step + 1)
    return slots._replace(
        step=step,
        stopped=jnp.where(slots.done, slots.stopped, ends),
        done=slots.done | ends | (step >= how.max_new),
        hidden=hidden,
        tokens=put(slots.tokens, token.id),
        logps=put(slots.logps, token.logp),
        sampler_logps=put(slots.sampler_logps, token.sampler_logp),
        at=(slots.at + 1) % len(slots.columns),
        cache=cache,
    )


def _read_next(model: Model, params: Params, slots: Slots, token: Array) -> tuple[Array, Cache]:
    """Read a token of each slot into the next column: hidden [slots, D] and the cache."""
    prompts = slots.prompts
    members = len(token) // len(prompts.length)
    length = jnp.repeat(prompts.length, members)
    positions = length + slots.step
    age = (slots.at - slots.columns) % len(slots.columns)
    back = jnp.where(age <= slots.step[:, None], age, -1)
    keys = only(prompts.cache, columned=True)
    width = max((x.shape[AXIS] for x in jax.tree.leaves(keys)), default=0)
    # Column c of a prompt has the position c - (width - length).
    place = jnp.arange(width) - (width - length)[:, None]
    of_prompt = jnp.where(place >= 0, positions[:, None] - place, -1)
    hidden, cache = model.extend(
        params,
        slots.cache,
        token[:, None],
        positions[:, None],
        back[:, None],
        slots.at,
        Shared(keys, of_prompt[:, None]),
    )
    return hidden[:, 0], cache
