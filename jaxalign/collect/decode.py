"""Answers drawn from a decoder, as many at a time as there are slots.

A prompt is read once for all of its answers, and a slot whose answer has ended gets the next one,
so that no answer waits for a longer one of another prompt. See `slots` for the programs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from ..core.sharding import batch_shards
from ..data.rows import round_up
from ..errors import UserError
from ..models.cache import only
from ..models.decoder import Model, Params
from ..models.spec import Spec
from .draw import How
from .slots import Prompts, Sizes, Slots, advance, begin, empty, grown, read

PROMPT_STEP = 64
READ = 2**14
"""Most tokens of prompts that are read at a time, where there are several."""
COLUMNS, RINGS = 32, 8
"""Columns of the first ring: at least 32, and at least one in 8 of the tokens of an answer."""
DRAWN = 8
"""Tokens of an answer between two calls of `drawn`."""
ENDED = 32
"""One of so many slots must end before new answers begin."""
SHARED = 4
"""Slots share prompts if the keys and values of a prompt for each are more numbers than this, per
parameter of the model."""
MEMBERS, WAVES = 2, 2
"""Slots that share a prompt, and answers to it that each of them draws."""
WORTH = 4
"""Answers a slot for which prompts of their own width are worth further programs."""


class Answer(NamedTuple):
    """The new tokens after a prompt."""

    tokens: np.ndarray  # [length], without the stop token
    stop: int | None  # the stop token that ended it; None: the maximum number of new tokens did
    logp: float  # of all tokens under the model, the stop token included; nats
    sampler_logp: float  # the same under the distribution that they were drawn from

    @property
    def stopped(self) -> bool:
        """Whether a stop token ended it."""
        return self.stop is not None

    @property
    def drawn(self) -> np.ndarray:
        """The tokens with the stop token, at least one."""
        return self.tokens if self.stop is None else np.append(self.tokens, np.int32(self.stop))


def generate(
    model: Model,
    params: Params,
    prompts: Sequence[np.ndarray],
    *,
    max_new: int,
    stop: Sequence[int],
    n: int = 1,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    drawn: Callable[[np.ndarray], object] | None = None,
) -> list[Answer]:
    """Continue every prompt, `n` times.

    Answer a, counted over all prompts, has the seed `seed` + a, and does not depend on the others
    (up to rounding). Prompts are padded to 64 * (1, 2, 3, 4, 6, 8, 12, ...) tokens. Programs are
    compiled for each such width, unless few prompts have it, and for each size of the ring.

    Args:
      model: the decoder.
      params: parameters as in `model.abstract`.
      prompts: token ids, each [length] with length > 0.
      max_new: maximum number of new tokens per answer.
      stop: ids that end an answer.
      n: number of answers per prompt.
      temperature: divisor of the logits; 0 takes the most likely token.
      top_k: number of most likely tokens to draw from; 0: all.
      top_p: probability of the most likely tokens to draw from.
      seed: seed of the first answer.
      batch_size: number of answers drawn at a time.
      drawn: a function that is called every 8 tokens with the tokens so far, where there is one
        answer.

    Returns:
      The answers, `n` to the first prompt, `n` to the next, and so on.

    Raises:
      UserError: an argument is out of range, or a prompt is empty, too long or of unknown ids.
    """
    how = How(float(temperature), top_k, float(top_p), tuple(stop), max_new)
    _check(model, prompts, how, n, batch_size)
    found: dict[int, Answer] = {}
    with jax.set_mesh(model.mesh):
        for width, numbers in _by_width([len(p) for p in prompts], WORTH * batch_size // n):
            sizes = _sizes(model, width, len(numbers), n, max_new, batch_size)
            own = {i: prompts[i] for i in numbers}
            found |= _Drawing(model, how, params, sizes, own, n, seed).answers(drawn)
    return [found[a] for a in range(len(prompts) * n)]


def _by_width(lengths: Sequence[int], worth: int) -> Iterator[tuple[int, list[int]]]:
    """The numbers of the prompts by the width that they are padded to, the longest first.

    Prompts of a smaller width join the ones before, unless these are more than `worth`.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    group: list[int] = []
    for i in order:
        width = round_up(lengths[group[0] if group else i], PROMPT_STEP)
        if len(group) > worth and round_up(lengths[i], PROMPT_STEP) < width:
            yield width, group
            group = []
        group.append(i)
    if group:
        yield round_up(lengths[group[0]], PROMPT_STEP), group


def _sizes(model: Model, width: int, count: int, n: int, max_new: int, batch_size: int) -> Sizes:
    """Slots for `n` answers to each of `count` prompts.

    Slots that share a prompt read its keys once a step, but wait for one another before the next.
    """
    prompt = only(jax.eval_shape(lambda: model.init_cache(1, width)), columned=True)
    numbers, params = (sum(x.size for x in jax.tree.leaves(t)) for t in (prompt, model.abstract))
    shared = min(n, batch_size) >= MEMBERS and batch_size * numbers > SHARED * params
    members = MEMBERS if shared else 1
    groups = max(min(count * n, batch_size) // members, 1)
    shards = batch_shards(model.mesh)
    columns = min(max(COLUMNS, math.ceil(max_new / RINGS)), max_new)
    return Sizes(-(-groups // shards) * shards, members, width, columns)


class _Work(NamedTuple):
    """Answers that one group draws to one prompt."""

    row: int  # of the prompt among those that have been read
    first: int  # number of the first answer
    end: int  # after the last


class _Drawing:
    """The answers to prompts of one width: what each group works at, which answer each slot has."""

    def __init__(
        self,
        model: Model,
        how: How,
        params: Params,
        sizes: Sizes,
        prompts: dict[int, np.ndarray],
        n: int,
        seed: int,
    ):
        self.model, self.how, self.params, self.sizes = model, how, params, sizes
        self.n, self.seed = n, seed
        self.next, self.end = np.zeros((2, sizes.groups), int)  # answers of a group not begun
        self.inside = np.full((sizes.groups, sizes.members), -1)
        self.waiting, self.unread = self._parts(prompts), len(prompts)
        self.read, self.work = next(self.waiting)

    def answers(self, drawn: Callable[[np.ndarray], object] | None) -> dict[int, Answer]:
        """The answers by their numbers: prompt i has i n to i n + n - 1."""
        slots, room = empty(self.model, self.how, self.sizes), self.sizes.columns
        found: dict[int, Answer] = {}
        while True:
            slots = self._begin(slots)
            if (self.inside < 0).all():
                return found
            if room == 0:
                columns = min(2 * len(slots.columns), self.how.max_new)
                room = columns - len(slots.columns)
                slots = grown(slots, columns)
            steps = room if drawn is None else min(room, DRAWN)
            slots = advance(self.model, self.how, self.params, slots, steps, self._least())
            room = len(slots.columns) - self._collect(slots, found)
            if drawn is not None:
                tokens, stopped = np.asarray(slots.tokens)[0], bool(slots.stopped[0])
                drawn(tokens[tokens >= 0][: -1 if stopped else None])

    def _parts(self, prompts: dict[int, np.ndarray]) -> Iterator[tuple[Prompts, list[_Work]]]:
        """The prompts, read as many at a time as fit, and the work for groups."""
        order, width = list(prompts), self.sizes.width
        each = 1 if self.sizes.members == 1 else self.sizes.members * WAVES
        shards = batch_shards(self.model.mesh)
        fit = min(math.ceil(self.sizes.groups * each / self.n), max(READ // width, 1))
        count = -(-fit // shards) * shards
        for start in range(0, len(order), count):
            numbers = order[start : start + count]
            # The last ones have the same shape: the first is repeated.
            filled = [prompts[i] for i in numbers + [numbers[0]] * (count - len(numbers))]
            ids = np.zeros((count, width), np.int32)
            for row, prompt in enumerate(filled):
                ids[row, width - len(prompt) :] = prompt
            length = np.array([len(prompt) for prompt in filled], np.int32)
            work = [
                _Work(row, i * self.n + j, i * self.n + min(j + each, self.n))
                for row, i in enumerate(numbers)
                for j in range(0, self.n, each)
            ]
            self.unread -= len(numbers)
            yield read(self.model, self.params, ids, length), work

    def _begin(self, slots: Slots) -> Slots:
        """Give idle groups the next work, and free slots the next answers."""
        while True:
            free = np.flatnonzero((self.next == self.end) & (self.inside < 0).all(1))
            if free.size and not self.work:
                self.read, self.work = next(self.waiting, (self.read, []))
            given, self.work = self.work[: free.size], self.work[free.size :]
            source = np.full(self.sizes.groups, -1, np.int32)
            for group, work in zip(free, given, strict=False):
                source[group] = work.row
                self.next[group], self.end[group] = work.first, work.end
            new, seeds = self._next_answers()
            if not new.any():
                return slots
            slots = begin(slots, self.read, source, seeds, new)

    def _next_answers(self) -> tuple[np.ndarray, np.ndarray]:
        """Put the next answers into free slots: which slots, and the seeds."""
        new = np.zeros(self.inside.shape, bool)
        seeds = np.zeros(self.inside.shape, np.uint32)
        for group, slot in zip(*np.nonzero(self.inside < 0), strict=True):
            if self.next[group] < self.end[group]:
                number = int(self.next[group])
                self.next[group] += 1
                self.inside[group, slot] = number
                new[group, slot], seeds[group, slot] = True, (self.seed + number) % 2**32
        return new.reshape(-1), seeds.reshape(-1)

    def _least(self) -> int:
        """How many slots are done when it is time for new answers; all, if there are none."""
        done, size = int((self.inside < 0).sum()), self.inside.size
        more = bool(self.work) or (self.next < self.end).any() or self.unread
        return min(done + max(size // ENDED, 1), size) if more else size

    def _collect(self, slots: Slots, found: dict[int, Answer]) -> int:
        """Take the ended answers out of their slots; returns the tokens of the longest other."""
        step, done = jax.device_get((slots.step, slots.done))
        inside = self.inside.reshape(-1)  # a view
        ended = np.flatnonzero(done & (inside >= 0))
        if ended.size:
            stopped, tokens, *logps = jax.device_get(
                (slots.stopped, slots.tokens, slots.logps, slots.sampler_logps)
            )
            for slot in ended:
                drawn = tokens[slot][tokens[slot] >= 0]
                sums = (float(x[slot].sum(dtype=np.float64)) for x in logps)
                stop = int(drawn[-1]) if stopped[slot] else None
                own = drawn if stop is None else drawn[:-1]
                found[int(inside[slot])] = Answer(own, stop, *sums)
            inside[ended] = -1
        return int(step[inside >= 0].max(initial=0))


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


def _check(model: Model, prompts: Sequence[np.ndarray], how: How, n: int, batch_size: int) -> None:
    def need(ok: bool, name: str, got: float, wanted: str) -> None:
        if not ok:
            raise UserError(f"generate: {name}: got {got}, wanted {wanted}")

    refuse_scores(model.spec)
    need(how.max_new >= 1, "max_new", how.max_new, "at least 1")
    need(n >= 1, "n", n, "at least 1")
    need(batch_size >= 1, "batch_size", batch_size, "at least 1")
    need(how.temperature >= 0, "temperature", how.temperature, "0 (the likeliest token) or more")
    top_k = how.top_k
    need(0 <= top_k <= model.spec.vocab, "top_k", top_k, f"0 (all) to {model.spec.vocab}")
    need(0 < how.top_p <= 1, "top_p", how.top_p, "more than 0, at most 1")
    for i, prompt in enumerate(prompts):
        check_prompt(model.spec, prompt, f"generate: prompt {i}", how.max_new)


def check_prompt(spec: Spec, prompt: np.ndarray, where: str, max_new: int) -> None:
    """Refuse a prompt that a model cannot continue.

    Args:
      spec: the model.
      prompt: token ids, [length].
      where: its place, for messages.
      max_new: maximum number of new tokens.

    Raises:
      UserError: the prompt is empty, too long or of unknown ids.
    """
    if not len(prompt):
        raise UserError(f"{where} is empty; give it at least one token")
    if min(prompt) < 0 or max(prompt) >= spec.vocab:
        raise UserError(
            f"{where}: got ids {min(prompt)} to {max(prompt)}, wanted 0 to "
            f"{spec.vocab - 1}; does the tokenizer belong to the model?"
        )
    total, limit = len(prompt) + max_new, spec.max_positions
    if total > limit:
        raise UserError(
            f"{where}: {len(prompt)} tokens and max_new {max_new} make {total}, "
            f"more than the model's {limit} positions; shorten the prompt or max_new"
        )
    for short in spec.switches:
        if len(prompt) <= short < total:
            raise UserError(
                f"{where}: {len(prompt)} tokens and max_new {max_new} make "
                f"{total}; beyond {short} the model reads all tokens with other frequencies "
                "(LongRoPE), to which generation does not change; shorten the prompt or max_new"
            )
