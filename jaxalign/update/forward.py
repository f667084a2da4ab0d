"""A microbatch -> the statistics of its responses, under the policy and under its reference."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from .. import settings
from ..core.batch import Batch
from ..core.objective import Objective
from ..core.sharding import constrain
from ..core.stats import reduce_tokens
from ..core.types import Array, SequenceStats
from ..models.decoder import Encoded
from ..models.layers.head import Head
from ..models.layers.mixture import Routing
from .head import token_stats

T = TypeVar("T")
Params = dict[str, Any]
"""A nested dict of arrays."""
Forward = Callable[..., Encoded]
"""(params, ids, positions, segment, branch; [K, L] each) -> `Encoded`, as `Model.forward`."""


class Numbers(NamedTuple):
    """The numbers of a task that are arguments of its compiled programs, not constants in them."""

    hyper: dict[str, Any]  # hyper-parameters that are no whole numbers
    seed: Any  # [] uint32
    weight: Any  # [] float32


@dataclasses.dataclass(frozen=True)
class Task:
    """What is minimized, and by which model: the static part of a step."""

    objective: Objective[...]
    hyper: Mapping[str, Any]
    forward: Forward
    trains_head: bool = True  # whether the head depends on the parameters that are trained
    seed: int = 0  # of the objective's random numbers
    router_balance: float = 0.0  # weight of `balance_loss`, which is added to the loss
    weight: float = 1.0  # factor of this loss in the loss of the stage
    term: str = ""  # its name, with which its metrics begin; "": the only one of the stage
    batch_of: str | None = None  # the term before it that has the same examples in each batch
    moves: settings.Reference | None = None  # how the reference in the state moves, if it does
    constant_hyper: bool = False  # whether the objective reads its numbers in Python

    def __post_init__(self):
        object.__setattr__(self, "hyper", FrozenDict(self.hyper))
        _ = self.bound  # an unknown hyper-parameter raises here, not in a trace

    def split(self) -> tuple[Task, Numbers]:
        """The task with zeros for the numbers of its programs, and these numbers.

        Tasks that differ in these numbers alone have equal first parts, and so can have one program
        (`with_numbers`).
        """
        lifted = {
            name: value
            for name, value in self.hyper.items()
            if isinstance(value, float) and not self.constant_hyper
        }
        hyper = {**self.hyper, **dict.fromkeys(lifted, 0.0)}
        static = dataclasses.replace(self, hyper=hyper, seed=0, weight=0.0)
        hyper = {name: np.float32(value) for name, value in lifted.items()}
        return static, Numbers(hyper, np.uint32(self.seed % 2**32), np.float32(self.weight))

    def with_numbers(self, numbers: Numbers) -> Task:
        """The task with these numbers, which may be traced, in place of its own."""
        hyper = {**self.hyper, **numbers.hyper}
        return dataclasses.replace(self, hyper=hyper, seed=numbers.seed, weight=numbers.weight)

    @functools.cached_property
    def bound(self) -> Callable[..., Any]:
        """The objective with its hyper-parameters; it takes its inputs by name."""
        return self.objective.bind(**self.hyper)

    def with_base(self, base: Params | None) -> Task:
        """Bind frozen weights as the first argument of `forward`; the same task if there are none.

        Call this inside the jitted function, so that the weights are its arguments and no
        compile-time constants.
        """
        if base is None:
            return self
        return dataclasses.replace(self, forward=functools.partial(self.forward, base))

    def named(self, metrics: Mapping[str, T]) -> dict[str, T]:
        """Metrics of this term under their names in the stage."""
        return {f"{self.term}/{k}" if self.term else k: v for k, v in metrics.items()}

    def reading(self, others: Sequence[Task]) -> Task:
        """This task with the token statistics that other tasks of the same policy need as well.

        Its loss is not to be computed: the statistics alone serve all of them.
        """
        needs = dict.fromkeys(stat for task in (self, *others) for stat in task.objective.needs)
        objective = dataclasses.replace(self.objective, needs=tuple(needs))
        return dataclasses.replace(self, objective=objective)

    @property
    def head_axis(self) -> str | None:
        """The logical axis of the head's columns: the few of a reward head are not sharded."""
        return "vocab" if self.objective.scores is None else None

    def keys(self, example: Array, step: Array | int) -> Array | None:
        """A random key per example and update, wherever the example is in the batch.

        None if the objective draws no random numbers.
        """
        if "key" not in self.objective.inputs:
            return None
        key = jax.random.fold_in(jax.random.key(self.seed, impl="threefry2x32"), step)
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(example.reshape(-1))
        return keys.reshape(example.shape)


class Scored(NamedTuple):
    """A model's outputs at the scored positions of a microbatch, before the head."""

    hidden: Array  # [chunks, S, M, D]
    head: Head
    layer_means: Array | None = None  # [chunks, S, M, layers]
    routing: Routing | None = None  # of all tokens, [layers, ...]


def scored_hidden(task: Task, params: Params, cells: Batch, *, layers: bool = False) -> Scored:
    """One forward pass of a microbatch, [S, ...], up to the head.

    Args:
      task: the forward pass.
      params: its parameters.
      cells: a microbatch.
      layers: whether to return the means of all layers too.
    """
    encoded = task.forward(params, *_rows(cells), **({"layers": True} if layers else {}))
    means = encoded.layer_means
    return Scored(
        _at_scored(encoded.hidden, cells),
        encoded.head,
        None if means is None else _at_scored(means, cells),
        encoded.routing,
    )


def routing_of(task: Task, params: Params, cells: Batch) -> Routing | None:
    """The routing of the tokens of a microbatch, [layers, ...], without its head."""
    return task.forward(params, *_rows(cells)).routing


def _rows(cells: Batch) -> Iterator[Array]:
    s, k, length = cells.ids.shape
    rows = (cells.ids, cells.positions, cells.segment, cells.branch)
    return (constrain(x.reshape(s * k, length), "batch", None) for x in rows)


def _at_scored(values: Array, cells: Batch) -> Array:
    """The scored positions of values at every position, [S * K, L, ...] -> [chunks, S, M, ...]."""
    s, k, length = cells.ids.shape
    values = constrain(values.reshape(s, k * length, -1), "batch", None, None)
    return jnp.moveaxis(jax.vmap(lambda v, i: v[i])(values, cells.source), 1, 0)


class HeadChunk(NamedTuple):
    """The examples of a microbatch whose logits are in memory together."""

    target: Array  # [S, M]
    slot: Array  # [S, M]
    mask: Array  # [S, b/chunks, R, T]
    ref: Array | None  # [S, M, D] hidden states of the reference, for joint statistics

    @classmethod
    def of(cls, cells: Batch, ref: Array | None = None) -> HeadChunk:
        """The chunks of a microbatch, on a leading axis [chunks]."""
        target, slot = (jnp.moveaxis(x, 1, 0) for x in (cells.target, cells.slot))
        return cls(target, slot, by_chunk(cells.mask, cells.target.shape[1]), ref)


def by_chunk(x: Array, chunks: int) -> Array:
    """Examples [S, b, ...] -> by chunk, [chunks, S, b/chunks, ...]."""
    return jnp.moveaxis(x.reshape(x.shape[0], chunks, -1, *x.shape[2:]), 1, 0)


def join_chunks(x: Array) -> Array:
    """The inverse of `by_chunk`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def chunk_stats(
    task: Task, hidden: Array, head: Head, chunk: HeadChunk, ref_head: Head | None = None
) -> SequenceStats:
    """Hidden states at scored positions, [S, M, D] -> statistics, leading axes [S, b/chunks, R].

    Joint statistics are left out unless the hidden states and the head of a reference are given.
    """
    ref = None if chunk.ref is None or ref_head is None else (chunk.ref, ref_head)
    needs = [stat for stat in task.objective.needs if ref or not stat.joint]
    token = token_stats(hidden, head, chunk.target, needs, ref, axis=task.head_axis)
    return reduce_tokens({k: _scatter(v, chunk) for k, v in token.items()}, chunk.mask)


def _scatter(values: Array, chunk: HeadChunk) -> Array:
    """Scored positions [S, M] -> by example and response, [S, b/chunks, R, T]."""
    s, b, r, t = chunk.mask.shape
    blank = jnp.zeros((s, b * r * t), values.dtype)
    put = jax.vmap(lambda x, i, v: x.at[i].set(v, mode="drop"))
    return put(blank, chunk.slot, values).reshape(s, b, r, t)


def sequence_stats(task: Task, params: Params, cells: Batch) -> SequenceStats:
    """One forward pass of a microbatch, [S, ...] -> statistics with leading axes [S, b, R].

    Joint statistics are left out.

    Args:
      task: the objective, which says what statistics it needs, and the forward pass.
      params: its parameters.
      cells: a microbatch.
    """
    return _all_stats(task, scored_hidden(task, params, cells), cells)


def _all_stats(
    task: Task, own: Scored, cells: Batch, reference: Scored | None = None
) -> SequenceStats:
    ref_hidden = None if reference is None else reference.hidden
    ref_head = None if reference is None else reference.head
    chunks = own.hidden, HeadChunk.of(cells, ref_hidden)
    stats = jax.lax.map(lambda x: chunk_stats(task, x[0], own.head, x[1], ref_head), chunks)
    return jax.tree.map(join_chunks, stats)


def _layer_stats(task: Task, means: Array, cells: Batch) -> dict[str, Array]:
    """Layer means at scored positions, [chunks, S, M, layers] -> {statistic: [S, b, R, T]}."""

    def one(item: tuple[Array, HeadChunk]) -> dict[str, Array]:
        means, chunk = item
        by_layer = jax.vmap(_scatter, (-1, None), -2)(means, chunk)
        found = {s.name: s.fn(by_layer, chunk.mask) for s in task.objective.layers}
        return {k: jnp.where(chunk.mask, v, 0.0) for k, v in found.items()}

    return jax.tree.map(join_chunks, jax.lax.map(one, (means, HeadChunk.of(cells))))


def cached_stats(token: dict[str, Array], mask: Array) -> SequenceStats | None:
    """`Batch.ref` or `Batch.start`, and the mask of the batch -> statistics; None if it is empty.

    Leading axes are the mask's, less T.
    """
    return reduce_tokens(token, mask) if token else None


class ReferencePass(NamedTuple):
    """What a microbatch needs of its reference, as constants."""

    stats: SequenceStats | None = None
    scored: Scored | None = None  # where the objective reads the reference's logits


def reference_pass(task: Task, cells: Batch, ref_params: Params | None) -> ReferencePass:
    """The cached statistics of a microbatch, or a forward pass of a live reference."""
    reference = task.objective.reference
    if reference == "none" and ref_params is None:
        return ReferencePass()
    if ref_params is None:
        if reference == "live":
            raise ValueError(f"objective '{task.objective.name}' needs a live reference")
        return ReferencePass(cached_stats(cells.ref, cells.mask))
    layers = bool(task.objective.layers)
    scored = scored_hidden(task, ref_params, cells, layers=layers)
    stats = _all_stats(task, scored, cells)
    if scored.layer_means is not None:
        token = stats.token | _layer_stats(task, scored.layer_means, cells)
        stats = dataclasses.replace(stats, token=token)
    return jax.lax.stop_gradient(ReferencePass(stats, scored if reference == "live" else None))


class PolicyPass(NamedTuple):
    """What the policy says of a microbatch."""

    stats: SequenceStats  # leading axes [S, b, R]
    routing: Routing | None  # [layers, ...]


def policy_pass(task: Task, params: Params, cells: Batch, reference: ReferencePass) -> PolicyPass:
    """One forward pass of the policy; joint statistics need the logits of the reference."""
    own = scored_hidden(task, params, cells)
    return PolicyPass(_all_stats(task, own, cells, reference.scored), own.routing)
