"""A microbatch to the statistics of its responses, under the policy and under its reference."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core.batch import Batch
from ..core.objective import Objective
from ..core.sharding import constrain
from ..core.stats import reduce_tokens
from ..core.types import Array, SequenceStats
from ..models.decoder import Encoded
from .head import token_stats

Params = Any
Forward = Callable[..., Encoded]
"""(params, ids, positions, segment, branch; [K, L] each) -> `Encoded`, as `Model.forward`."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What is being minimised, by which model: the static part of a step."""

    objective: Objective
    hyper: dict[str, Any]
    forward: Forward
    trains_head: bool = True  # whether the head depends on the parameters that are trained
    seed: int = 0  # of what an objective draws

    def __post_init__(self):
        self.objective.bind(**self.hyper)  # an unknown hyper-parameter raises here, not in a trace

    def beside(self, frozen: Params | None) -> Task:
        """The same task whose `forward` takes these parameters first; itself where there are none.

        Called where `frozen` is an argument of the jitted function, they are no constant of it.
        """
        if frozen is None:
            return self
        return dataclasses.replace(self, forward=functools.partial(self.forward, frozen))

    @property
    def head_axis(self) -> str | None:
        """The logical axis of the head's columns: the few of a reward head are not cut."""
        return "vocab" if self.objective.scores is None else None

    def keys(self, example: Array, step: Array | int) -> Array | None:
        """A key per example and update, whatever its place in the batch; None if none is read."""
        if "key" not in self.objective.inputs:
            return None
        key = jax.random.fold_in(jax.random.key(self.seed, impl="threefry2x32"), step)
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(example.reshape(-1))
        return keys.reshape(example.shape)


Hidden = tuple[Array, Array]
"""Hidden states at the scored positions, [G, S, M, D], and the head, [D, V]."""


def scored_hidden(task: Task, params: Params, cells: Batch) -> Hidden:
    """One pass of a microbatch, [S, ...], through the body."""
    encoded = task.forward(params, *_rows(cells))
    return _scored(encoded.hidden, cells), encoded.head


def scored_layers(task: Task, params: Params, cells: Batch) -> tuple[Hidden, Array]:
    """The same, and the means of N layers at the scored positions, [G, S, M, N]."""
    encoded = task.forward(params, *_rows(cells), layers=True)
    assert encoded.layer_means is not None
    return (_scored(encoded.hidden, cells), encoded.head), _scored(encoded.layer_means, cells)


def _rows(cells: Batch) -> Iterator[Array]:
    s, k, length = cells.ids.shape
    rows = (cells.ids, cells.positions, cells.segment, cells.branch)
    return (constrain(x.reshape(s * k, length), "batch", None) for x in rows)


def _scored(values: Array, cells: Batch) -> Array:
    """What the body gives at every position, [S * K, L, ...] -> [G, S, M, ...]."""
    s, k, length = cells.ids.shape
    values = constrain(values.reshape(s, k * length, -1), "batch", None, None)
    return jnp.moveaxis(jax.vmap(lambda v, i: v[i])(values, cells.source), 1, 0)


class Chunk(NamedTuple):
    """The examples whose logits are alive together; G of them in a microbatch."""

    target: Array  # [S, M]
    slot: Array  # [S, M]
    mask: Array  # [S, b/G, R, T]
    ref: Array | None  # [S, M, D] hidden states of the reference, for joint statistics

    @classmethod
    def of(cls, cells: Batch, ref: Array | None = None) -> Chunk:
        """The chunks of a microbatch, on a leading axis G."""
        target, slot = (jnp.moveaxis(x, 1, 0) for x in (cells.target, cells.slot))
        return cls(target, slot, cut(cells.mask, cells.target.shape[1]), ref)


def cut(x: Array, chunks: int) -> Array:
    """Examples [S, b, ...] -> by chunk, [G, S, b/G, ...]."""
    return jnp.moveaxis(x.reshape(x.shape[0], chunks, -1, *x.shape[2:]), 1, 0)


def join(x: Array) -> Array:
    """The inverse of `cut`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def chunk_stats(
    task: Task, hidden: Array, head: Array, chunk: Chunk, ref_head: Array | None = None
) -> SequenceStats:
    """Hidden states at scored positions, [S, M, D] -> statistics with leading axes [S, b/G, R].

    Joint statistics are left out where there is no reference beside.
    """
    ref = None if chunk.ref is None or ref_head is None else (chunk.ref, ref_head)
    needs = [stat for stat in task.objective.needs if ref or not stat.joint]
    token = token_stats(hidden, head, chunk.target, needs, ref, axis=task.head_axis)
    return reduce_tokens({k: scatter(v, chunk) for k, v in token.items()}, chunk.mask)


def scatter(values: Array, chunk: Chunk) -> Array:
    """Values at scored positions, [S, M] -> the same by example and response, [S, b/G, R, T]."""
    s, b, r, t = chunk.mask.shape
    blank = jnp.zeros((s, b * r * t), values.dtype)
    put = jax.vmap(lambda x, i, v: x.at[i].set(v, mode="drop"))
    return put(blank, chunk.slot, values).reshape(s, b, r, t)


def sequence_stats(
    task: Task, params: Params, cells: Batch, beside: Hidden | None = None
) -> SequenceStats:
    """One forward pass over a microbatch, [S, ...] -> statistics with leading axes [S, b, R]."""
    return _all_stats(task, scored_hidden(task, params, cells), cells, beside)


def _all_stats(
    task: Task, own: Hidden, cells: Batch, beside: Hidden | None = None
) -> SequenceStats:
    hidden, head = own
    ref_hidden, ref_head = beside or (None, None)
    chunks = hidden, Chunk.of(cells, ref_hidden)
    stats = jax.lax.map(lambda x: chunk_stats(task, x[0], head, x[1], ref_head), chunks)
    return jax.tree.map(join, stats)


def _layer_stats(task: Task, means: Array, cells: Batch) -> dict[str, Array]:
    """Means of layers at scored positions, [G, S, M, N] -> {statistic: [S, b, R, T]}."""

    def one(item: tuple[Array, Chunk]) -> dict[str, Array]:
        means, chunk = item
        by_layer = jax.vmap(scatter, (-1, None), -2)(means, chunk)
        found = {s.name: s.fn(by_layer, chunk.mask) for s in task.objective.layers}
        return {k: jnp.where(chunk.mask, v, 0.0) for k, v in found.items()}

    return jax.tree.map(join, jax.lax.map(one, (means, Chunk.of(cells))))


def cached_stats(token: dict[str, Array], mask: Array) -> SequenceStats | None:
    """`Batch.ref` or `Batch.start`, and the mask of the batch -> statistics; None if it is empty.

    Leading axes are the mask's, less T.
    """
    return reduce_tokens(token, mask) if token else None


def reference_of(
    task: Task, cells: Batch, ref_params: Params | None
) -> tuple[SequenceStats | None, Hidden | None]:
    """Statistics of the reference, and what gives its logits if they are read; constants."""
    reference = task.objective.reference
    if reference == "none" and ref_params is None:
        return None, None
    if ref_params is None:
        if reference == "live":
            raise ValueError(f"objective '{task.objective.name}' needs a live reference")
        return cached_stats(cells.ref, cells.mask), None
    if not task.objective.layers:
        hidden = scored_hidden(task, ref_params, cells)
        stats = _all_stats(task, hidden, cells)
    else:
        hidden, means = scored_layers(task, ref_params, cells)
        stats = _all_stats(task, hidden, cells)
        token = stats.token | _layer_stats(task, means, cells)
        stats = dataclasses.replace(stats, token=token)
    return jax.lax.stop_gradient((stats, hidden if reference == "live" else None))


def both(task: Task, params: Params, cells: Batch, ref_params: Params | None) -> Any:
    """Statistics of the policy and of the reference."""
    ref, beside = reference_of(task, cells, ref_params)
    return sequence_stats(task, params, cells, beside), ref
