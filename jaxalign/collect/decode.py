"""Drawing tokens from a decoder, in batches, with a cache of the tokens read so far."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.sharding import constrain
from ..core.types import Array
from ..data.rows import round_up
from ..errors import UserError
from ..models.decoder import Cache, Model, Params
from ..models.spec import Spec

PROMPT_STEP = 64
DRAWN = 8
"""Tokens of each answer between two calls of `drawn`."""


class _How(NamedTuple):
    """The settings of a program that draws tokens; static."""

    temperature: float
    top_k: int
    top_p: float
    stop: tuple[int, ...]
    max_new: int


class _State(NamedTuple):
    """The loop's state after `step` tokens of each of N rows."""

    key: Array  # [N]
    pad: Array  # [N] columns of the cache before the prompt
    columns: Array  # [columns] 0, 1, ...: the columns of the cache
    filled: Array  # [] how many of them are filled
    step: Array  # []
    token: Array  # [N] the last token drawn
    done: Array  # [N] bool
    out: Array  # [N, max_new] tokens drawn so far; -1 beyond
    cache: Cache


def generate(
    model: Model,
    params: Params,
    prompts: Sequence[np.ndarray],
    *,
    max_new: int,
    stop: Sequence[int],
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    drawn: Callable[[np.ndarray], object] | None = None,
) -> list[np.ndarray]:
    """Continue every prompt.

    The tokens drawn for a prompt depend on `seed` and its place in `prompts`, not on the other
    prompts of its batch (up to rounding). Prompts of similar length are batched together and padded
    to 64 * (1, 2, 3, 4, 6, 8, 12, ...) tokens; each such length compiles two programs, one that
    reads the prompts and one that draws.

    Args:
      model: the decoder.
      params: parameters as in `model.abstract`.
      prompts: token ids, each [length] with length > 0.
      max_new: maximum number of new tokens per prompt.
      stop: ids that end a response.
      temperature: divisor of the logits; 0 takes the most likely token.
      top_k: number of most likely tokens to draw from; 0: all.
      top_p: probability of the most likely tokens to draw from.
      seed: seed of all draws.
      batch_size: number of prompts per batch.
      drawn: a function that is called every 8 tokens with the tokens drawn so far for a batch,
        [batch_size, n] with -1 after the end of a response.

    Returns:
      The new tokens of each prompt, without the stop token.

    Raises:
      UserError: an argument is out of range, or a prompt is empty, too long or of unknown ids.
    """
    _check(model, prompts, max_new, temperature, top_k, top_p, batch_size)
    how = _How(float(temperature), top_k, float(top_p), tuple(stop), max_new)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    rows = min(batch_size, len(prompts))
    key = jax.random.key(seed)
    results: dict[int, np.ndarray] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        ids, length, number = _batch(prompts, chosen, rows)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, number)
        with jax.set_mesh(model.mesh):
            out = _continue(model, how, params, (ids, length, keys), drawn)
        results |= {i: row[row >= 0] for i, row in zip(chosen, out, strict=False)}
    return [results[i] for i in range(len(prompts))]


def refuse_scores(spec: Spec) -> None:
    """Refuse a reward model, which has no next tokens.

    Raises:
      UserError: the configuration has a reward head.
    """
    if spec.scores:
        raise UserError(
            "generate: a reward model gives scores and no next tokens; choose a causal language "
            "model"
        )


def _check(
    model: Model,
    prompts: Sequence[np.ndarray],
    max_new: int,
    temperature: float,
    top_k: int,
    top_p: float,
    batch_size: int,
) -> None:
    def need(ok: bool, name: str, got: float, wanted: str) -> None:
        if not ok:
            raise UserError(f"generate: {name}: got {got}, wanted {wanted}")

    refuse_scores(model.spec)
    need(max_new >= 1, "max_new", max_new, "at least 1")
    need(batch_size >= 1, "batch_size", batch_size, "at least 1")
    need(temperature >= 0, "temperature", temperature, "0 (the likeliest token) or more")
    need(0 <= top_k <= model.spec.vocab, "top_k", top_k, f"0 (all) to {model.spec.vocab}")
    need(0 < top_p <= 1, "top_p", top_p, "more than 0, at most 1")
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            raise UserError(f"generate: prompt {i} is empty; give it at least one token")
        if min(prompt) < 0 or max(prompt) >= model.spec.vocab:
            raise UserError(
                f"generate: prompt {i}: got ids {min(prompt)} to {max(prompt)}, wanted 0 to "
                f"{model.spec.vocab - 1}; does the tokenizer belong to the model?"
            )
        total, limit = len(prompt) + max_new, model.spec.max_positions
        if total > limit:
            raise UserError(
                f"generate: prompt {i}: {len(prompt)} tokens and max_new {max_new} make {total}, "
                f"more than the model's {limit} positions; shorten the prompt or max_new"
            )
        for short in model.spec.switches:
            if len(prompt) <= short < total:
                raise UserError(
                    f"generate: prompt {i}: {len(prompt)} tokens and max_new {max_new} make "
                    f"{total}; beyond {short} the model reads all tokens with other frequencies "
                    "(LongRoPE), to which generation does not change; shorten the prompt or max_new"
                )


def _batch(
    prompts: Sequence[np.ndarray], chosen: list[int], rows: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Left-padded ids [rows, P], lengths [rows] and places in `prompts` [rows].

    Rows beyond the chosen prompts repeat the first, so that the last batch has the same shape.
    """
    filled = chosen + [chosen[0]] * (rows - len(chosen))
    longest = max(len(prompts[i]) for i in chosen)
    width = round_up(longest, PROMPT_STEP)
    ids = np.zeros((rows, width), np.int32)
    for row, i in enumerate(filled):
        ids[row, width - len(prompts[i]) :] = prompts[i]
    length = np.array([len(prompts[i]) for i in filled], np.int32)
    return ids, length, np.array(filled, np.int32)


def _continue(
    model: Model,
    how: _How,
    params: Params,
    prompts: tuple[np.ndarray, np.ndarray, Array],
    drawn: Callable[[np.ndarray], object] | None,
) -> np.ndarray:
    """Prompts [N, P] left-padded, their lengths and keys [N] -> new tokens [N, max_new]."""
    state = _begin(model, how, params, *prompts)
    step, every = 0, how.max_new if drawn is None else DRAWN
    while True:
        step = min(step + every, how.max_new)
        state = _advance(model, how, params, state, step)
        out = np.asarray(state.out)
        if drawn is not None:
            drawn(out[:, :step])
        if step == how.max_new or (out[:, step - 1] < 0).all():
            return out


@functools.partial(jax.jit, static_argnums=(0, 1))
def _begin(
    model: Model, how: _How, params: Params, ids: Array, length: Array, key: Array
) -> _State:
    """Read the prompts and draw the first token of each response.

    Column c of the cache holds the token at position c - pad.
    """
    n, width = ids.shape
    cache = model.init_cache(n, width + how.max_new)
    blank = jnp.full((n, how.max_new), -1, jnp.int32)
    zero, zeros = jnp.int32(0), jnp.zeros(n, jnp.int32)
    columns = jnp.arange(width + how.max_new)
    state = _State(key, width - length, columns, zero, zero, zeros, zeros > 0, blank, cache)
    return _next(model, how, params, state, ids)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _advance(model: Model, how: _How, params: Params, state: _State, until: int | Array) -> _State:
    """Draw until each response has `until` tokens, at most `max_new`, or has ended."""

    def more(state: _State) -> Array:
        return (state.step < until) & ~jnp.all(state.done)

    def advance(state: _State) -> _State:
        return _next(model, how, params, state, state.token[:, None])

    state = jax.lax.while_loop(more, advance, state)
    return state._replace(out=constrain(state.out, None, None))


def _next(model: Model, how: _How, params: Params, state: _State, tokens: Array) -> _State:
    """Read tokens [N, L] into the next columns of the cache, and draw the token after them.

    The end of a response is followed by -1.
    """
    pad = state.pad[:, None]  # [N, 1]
    own = state.filled + jnp.arange(tokens.shape[1])
    sees = (state.columns <= own[:, None]) & (state.columns >= pad[:, :, None])  # [N, L, columns]
    positions = jnp.maximum(own - pad, 0)
    hidden, head, cache = model.extend(
        params, state.cache, tokens, positions, sees[:, None], state.filled
    )
    logits = constrain(head.logits(hidden[:, -1]), "batch", None)
    token = _draw(how, state.key, state.step, logits)
    done = state.done | jnp.isin(token, jnp.array(how.stop, jnp.int32))
    out = state.out.at[:, state.step].set(jnp.where(done, -1, token))
    filled = state.filled + tokens.shape[1]
    step = state.step + 1
    return state._replace(filled=filled, step=step, token=token, done=done, out=out, cache=cache)


def _draw(how: _How, key: Array, step: Array, logits: Array) -> Array:
    """A token [N] for each row of logits [N, V]."""
    if how.temperature == 0:
        return jnp.argmax(logits, -1).astype(jnp.int32)
    allowed = restrict(logits / how.temperature, how.top_k, how.top_p)
    now = jax.vmap(jax.random.fold_in, (0, None))(key, step)
    return jax.vmap(jax.random.categorical)(now, allowed).astype(jnp.int32)


def restrict(logits: Array, top_k: int, top_p: float) -> Array:
    """Logits [N, V] with all but the most likely tokens at -inf.

    Keeps the `top_k` largest logits (0: all), then the smallest set of the most likely among them
    whose probability reaches `top_p` (Holtzman et al. 2020, arXiv:1904.09751). Ties at the edge are
    all kept.
    """
    if top_k:
        edge = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < edge, -jnp.inf, logits)
    if top_p < 1:
        falling = jnp.flip(jnp.sort(logits, -1), -1)
        before = jnp.cumsum(jax.nn.softmax(falling, -1), -1) - jax.nn.softmax(falling, -1)
        edge = jnp.min(jnp.where(before < top_p, falling, jnp.inf), -1, keepdims=True)
        logits = jnp.where(logits < edge, -jnp.inf, logits)
    return logits
