"""Statistics of responses under a model on the devices: log-probabilities or scores."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ..core.batch import Batch
from ..core.objective import objective
from ..core.sharding import batch_shards, held_shards, put_batch, replicated
from ..core.stats import logit, logp
from ..core.types import Demos, Loss, Metrics, SequenceStats, per_example
from ..data.examples import Example
from ..data.loader import Loader
from ..data.pack import head_chunks, pack
from ..data.rows import SCORED_UNIT, Shape, round_up, row_lengths
from ..data.store import Examples
from ..models.decoder import Model, Params
from ..update.forward import Task, sequence_stats

ROW_LENGTH = 2048
"""Maximum length of a packed row, in tokens."""
RESPONSES = 64
"""Responses of a forward pass."""


class Measure:
    """The forward pass of a model over packed batches."""

    def __init__(self, model: Model, params: Params, dtype: str):
        """Take a model.

        Args:
          model: the decoder.
          params: its weights.
          dtype: dtype of parameters and matrix products, float32 or bfloat16.
        """
        self._model, self._params, self._dtype = model, params, dtype

    def batches(self, examples: Examples, batch_size: int) -> list[SequenceStats]:
        """Statistics of a data set, one batch after another, in the order of its examples.

        Args:
          examples: the data set.
          batch_size: examples per forward pass, rounded up to the shards of the batch.

        Returns:
          Statistics of numpy arrays with leading axes [b, R] for batches of b examples. The token
          statistic is `logp`, or `logit` of a reward model.
        """
        mesh, spec = self._model.mesh, self._model.spec
        shards = batch_shards(mesh)
        cell = -(-min(batch_size, len(examples)) // shards)
        scored = examples.responses * spec.scores or examples.offsets[-1] / len(examples)
        loader = Loader(
            examples,
            batch_size=cell * shards,
            microbatches=1,
            shards=shards,
            chunks=head_chunks(cell, scored, spec.scores or spec.vocab),
            scores=spec.scores,
            row_length=ROW_LENGTH,
            shapes=2,
            seed=0,
        )
        forward = _forward(self._model, max(self._model.branches, examples.branches))
        with jax.set_mesh(mesh), precision(self._dtype):
            return [
                _in_order(batch, jax.device_get(forward(self._params, put_batch(batch, mesh))))
                for batch in loader.sequential()
            ]

    def each(self, examples: Sequence[Example]) -> list[SequenceStats]:
        """Statistics of every example, with the leading axis [R], in the order of the examples.

        Examples with as many responses and of similar length share a batch.
        """
        found: dict[int, SequenceStats] = {}
        for count in sorted({example.responses for example in examples}):
            order = [i for i, example in enumerate(examples) if example.responses == count]
            order.sort(key=lambda i: examples[i].length)
            data = Examples.of([examples[i] for i in order])
            stats = self.batches(data, max(RESPONSES // count, 1))
            rows = ((batch, row) for batch in stats for row in range(len(batch.logp)))
            for i, (batch, row) in zip(order, rows, strict=True):
                found[i] = jax.tree.map(lambda x, row=row: x[row], batch)
        return [found[i] for i in range(len(examples))]


def token_logps(
    model: Model,
    params: Params,
    examples: Sequence[Example],
    *,
    cell: int,
    longest: int,
    scored: int,
) -> np.ndarray:
    """The log-probabilities of the scored tokens of examples with one response each.

    All batches have the shape that holds the longest examples, whatever the examples are, so that
    a model that measures new ones again and again has one program.

    Args:
      model: the decoder.
      params: its weights.
      examples: the examples.
      cell: examples of a forward pass on each shard of the batch.
      longest: the most tokens that an example may have.
      scored: the most scored tokens that it may have.

    Returns:
      [examples, T] float32, nats; 0 beyond the end of a response.
    """
    mesh = model.mesh
    shards, most = batch_shards(mesh), round_up(scored, 16)
    chunks = head_chunks(cell, most, model.spec.vocab)
    length = row_lengths(longest, 128)[0]
    shape = Shape(cell, length, chunks, round_up(cell // chunks * most, SCORED_UNIT))
    forward, found = _forward(model, model.branches), []
    for start in range(0, len(examples), cell * shards):
        items = list(examples[start : start + cell * shards])
        batch = pack(
            [*items, *[None] * (cell * shards - len(items))],
            np.arange(start, start + cell * shards),
            responses=1,
            microbatches=1,
            shards=shards,
            chunks=chunks,
            row_length=length,
            max_scored=most,
            shapes=[shape],
            held=held_shards(mesh),
        )
        with jax.set_mesh(mesh):
            stats = jax.device_get(forward(params, put_batch(batch, mesh)))
        found.append(_in_order(batch, stats).token["logp"][:, 0])
    return np.concatenate(found)


@functools.lru_cache(maxsize=16)
def _forward(model: Model, branches: int) -> Any:
    """The forward pass of a model over a packed batch, compiled for each shape of a batch."""
    model = dataclasses.replace(model, branches=branches)
    task = Task(_scores if model.spec.scores else _log_probabilities, {}, model.forward)

    @functools.partial(jax.jit, out_shardings=replicated(model.mesh))
    def forward(params: Any, batch: Batch) -> SequenceStats:
        return jax.lax.map(lambda cells: sequence_stats(task, params, cells), batch)

    return forward


def precision(dtype: str) -> contextlib.AbstractContextManager[Any]:
    """The precision of matrix products: accelerators round float32 unless told not to."""
    if dtype == "float32":
        return jax.default_matmul_precision("highest")
    return contextlib.nullcontext()


@objective(Demos, source="no loss: log-probabilities only", needs=(logp,))
def _log_probabilities(policy: Demos) -> tuple[Loss, Metrics]:
    """Log-probabilities."""
    return per_example(policy.response.logp), {}


@objective(Demos, source="no loss: scores only", needs=(logit,), scores=lambda hyper: 1)
def _scores(policy: Demos) -> tuple[Loss, Metrics]:
    """Scores of a reward head."""
    return per_example(policy.response.token["logit"].sum(-1)), {}


def _in_order(batch: Batch, stats: SequenceStats) -> SequenceStats:
    """Leading axes [n, S, b] to the examples of the batch, in order, without padding."""
    order = np.argsort(batch.example, axis=None, kind="stable")
    order = order[batch.example.reshape(-1)[order] >= 0]
    lead = batch.example.ndim
    return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[lead:])[order], stats)
