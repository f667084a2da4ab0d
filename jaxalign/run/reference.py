"""The reference pass: token statistics of a frozen model, computed once and kept on disk.

A cache is a folder of `part-*.npz` files, each with the statistics of consecutive examples and the
fingerprint of everything they depend on. A part is written whole or not at all and carries zip's
CRC-32: a killed pass resumes at the first missing part, and damage is found on reading.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from rich.console import Console

from ..core.batch import Batch
from ..core.sharding import put_batch, replicated
from ..data.disk import Joined, OnDisk, npz_arrays
from ..data.loader import Loader
from ..data.pack import CachedStats
from ..errors import RunError, UserError
from ..files import first_process, whole_file
from ..hf import load
from ..hf.tokenizer import tokenizer_fingerprint
from ..models.decoder import Model, Params
from ..models.families import read_config
from ..update.forward import Task, sequence_stats
from .check_data import check_ids
from .stage import describe_model
from .term import TermRun
from .weights import kept_digest, reference_source, starting_params

PART = 1024  # examples per part, rounded up to whole batches
FINGERPRINT = "fingerprint"
"""The array of a part with the SHA-256 of what it depends on."""

Compute = Callable[[Batch], Mapping[str, jax.Array]]
"""A packed batch -> {statistic: [n, S, b, R, T]}, whole on every host."""


def cached(
    folder: Path,
    fingerprint: Mapping[str, str],
    loader: Loader,
    compute: Callable[[], Compute],
    progress: Callable[[int, int], None],
) -> dict[str, Joined]:
    """The reference statistics of a data set, from disk where they are there.

    Args:
      folder: the cache, on storage that all hosts share; made if missing.
      fingerprint: everything the statistics depend on: weights, tokenizer, data, dtype, needs.
      loader: batches of the data set.
      compute: called only if a part is missing; loads the reference and returns its forward pass.
      progress: called with (examples done, examples in all).

    Returns:
      {statistic: flat float32, by example, response, scored token}.

    Raises:
      UserError: a part is damaged. Parts of another fingerprint are computed again.
    """
    about = json.dumps(dict(fingerprint), sort_keys=True).encode()
    digest = hashlib.sha256(about).digest()
    batches = max(PART // loader.batch_size, 1)
    size = batches * loader.batch_size
    total = len(loader.examples)
    offsets = loader.examples.offsets[:: loader.examples.responses]

    def read(start: int) -> dict[str, OnDisk] | None:
        tokens = int(offsets[min(start + size, total)] - offsets[start])
        return _read(_part(folder, start), digest, tokens)

    found = {start: read(start) for start in range(0, total, size)}
    missing = [start for start, part in found.items() if part is None]
    forward = compute() if missing else None
    for start in missing:
        stop = min(start + size, total)
        assert forward is not None
        rows = [_scored(batch, forward(batch)) for batch in loader.sequential(start, stop)]
        if first_process():
            values = {k: np.concatenate([r[k] for r in rows]) for k in rows[0]}
            values[FINGERPRINT] = np.frombuffer(digest, np.uint8)
            folder.mkdir(parents=True, exist_ok=True)
            with whole_file(_part(folder, start)) as file:
                np.savez(file, **values)
        progress(stop, total)
    if missing:
        multihost_utils.sync_global_devices(f"reference {folder}")
    parts = [part or read(start) for start, part in found.items()]
    whole = [part for part in parts if part is not None]
    if len(whole) < len(parts):
        raise RunError(f"{folder}: parts are not on storage that all hosts share; choose another")
    return {k: Joined([p[k] for p in whole]) for k in whole[0]}


def _part(folder: Path, start: int) -> Path:
    return folder / f"part-{start:09d}.npz"


def _scored(batch: Batch, stats: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """The statistics of a batch's scored tokens, flat, in the order of its examples."""
    order = np.argsort(batch.example, axis=None, kind="stable")
    order = order[batch.example.reshape(-1)[order] >= 0]
    mask = batch.mask.reshape(-1, *batch.mask.shape[3:])[order]
    return {k: np.asarray(v).reshape(-1, *v.shape[3:])[order][mask] for k, v in stats.items()}


def _read(path: Path, fingerprint: bytes, tokens: int) -> dict[str, OnDisk] | None:
    """The statistics of a part; None if there is none, or one of other inputs or of another size.

    Raises:
      UserError: the part is damaged.
    """
    if not path.exists():
        return None
    try:
        found = npz_arrays(path)
        own = found.pop(FINGERPRINT, None)
        same = own is not None and own[:].tobytes() == fingerprint
    except (OSError, ValueError) as e:
        raise UserError(
            f"reference cache: {path} is damaged ({e}); delete this file to compute it again"
        ) from e
    return found if same and all(len(x) == tokens for x in found.values()) else None


def cached_reference(stage: TermRun, split: str, console: Console) -> CachedStats | None:
    """The cached statistics of a data set, computed now if they are not on disk.

    Args:
      stage: the stage.
      split: "train" or "held_out".
      console: where to print progress.

    Returns:
      Statistics under the reference and under the weights that the stage starts from; None if the
      objective reads neither from disk.
    """
    found: dict[str, Joined] = {}
    start: dict[str, Joined] = {}
    if stage.reference_mode == "cached":
        found = _pass(stage, split, reference_source(stage), "reference", console)
    if stage.task.objective.uses_start:
        same = found and reference_source(stage) == stage.source
        start = found if same else _pass(stage, split, stage.source, "start", console)
    return CachedStats(found, start) if found or start else None


def held_out_loader(term: TermRun, console: Console) -> Loader | None:
    """Batches of the held-out data with their cached statistics; None if there are no such data.

    Args:
      term: the term.
      console: where to print progress.
    """
    if term.held_out is None:
        return None
    return term.loader(term.held_out, cached_reference(term, "held_out", console))


def _pass(
    stage: TermRun, split: str, source: Path, name: str, console: Console
) -> dict[str, Joined]:
    """The statistics of a data set under a checkpoint, kept in the stage's folder `name`."""
    examples = stage.train if split == "train" else stage.held_out
    assert examples is not None
    config = repr(read_config(load.load_config(source)))
    fingerprint = {
        "weights": load.weights_fingerprint(source, kept_digest(stage)),
        "config": hashlib.sha256(config.encode()).hexdigest(),
        "tokenizer": tokenizer_fingerprint(stage.source),
        "data": examples.fingerprint,
        "dtype": stage.recipe.model.dtype,
        "needs": ", ".join(s.name for s in stage.task.objective.needs),
    }
    if stage.quantized and source == stage.source:
        fingerprint["quantized"] = stage.quantized

    def compute() -> Compute:
        console.print(f"{stage.label}: {name} pass over {split} data with {source}")
        return reference_forward(stage, source)

    def progress(done: int, total: int) -> None:
        console.print(f"{stage.label}: {name} {split} {done}/{total} examples")

    folder = stage.folder / name / stage.term / split
    return cached(folder, fingerprint, stage.loader(examples), compute, progress)


def reference_model(stage: TermRun, source: Path) -> Model:
    """The decoder of a frozen checkpoint, without its weights.

    Raises:
      UserError: it is of an unknown architecture, or lacks a token or a position of the data.
    """
    model = describe_model(source, stage.recipe.model, stage.mesh, stage.model.branches)
    for examples in (stage.train, stage.held_out):
        if examples is not None:
            check_ids(examples, model.spec, source)
    return model


def reference_forward(stage: TermRun, source: Path) -> Compute:
    """Load a reference and compile its forward pass over packed batches."""
    model = reference_model(stage, source)
    own = source == stage.source
    params = starting_params(stage) if own else load.load_params(source, model)
    static, _ = dataclasses.replace(stage.task, forward=model.forward).split()
    forward = _forward_program(static, stage.mesh)
    return lambda batch: forward(params, put_batch(batch, stage.mesh))


@functools.lru_cache(maxsize=16)
def _forward_program(task: Task, mesh: Mesh) -> Callable[[Params, Batch], dict[str, jax.Array]]:
    """(params, batch) -> its token statistics, compiled; they depend on no number of the task."""

    def forward(params: Params, batch: Batch) -> dict[str, jax.Array]:
        return jax.lax.map(lambda cells: sequence_stats(task, params, cells).token, batch)

    return jax.jit(forward, out_shardings=replicated(mesh))
