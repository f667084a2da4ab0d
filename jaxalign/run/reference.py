"""The reference pass: token statistics of a frozen model, computed once and kept on disk.

A cache is a folder of `part-*.npz` files, each with the statistics of consecutive examples, and a
`fingerprint.json` of everything they depend on. A part is written whole or not at all and carries
zip's CRC-32: a killed pass resumes at the first missing part, and damage is found on reading.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console

from ..core.batch import Batch
from ..core.sharding import put_batch, replicated
from ..data.disk import Joined, OnDisk, npz_arrays
from ..data.loader import Loader
from ..data.pack import CachedStats
from ..errors import UserError
from ..files import first_process, whole_file, write_whole
from ..hf import load
from ..hf.tokenizer import tokenizer_fingerprint
from ..models.decoder import Params
from ..models.families import read_config
from ..update.forward import sequence_stats
from .check_data import check_ids
from .stage import StageRun, describe_model
from .weights import reference_source, starting_params

PART = 1024  # examples per part, rounded up to whole batches

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
      UserError: the folder holds the statistics of another fingerprint, or a part is damaged.
    """
    _claim(folder, dict(fingerprint))
    batches = max(PART // loader.batch_size, 1)
    size = batches * loader.batch_size
    total = len(loader.examples)
    starts = range(0, total, size)
    missing = [i for i in starts if not _part(folder, i).exists()]
    forward = compute() if missing else None
    for start in missing:
        stop = min(start + size, total)
        assert forward is not None
        rows = [_scored(batch, forward(batch)) for batch in loader.sequential(start, stop)]
        if first_process():
            values = {k: np.concatenate([r[k] for r in rows]) for k in rows[0]}
            with whole_file(_part(folder, start)) as file:
                np.savez(file, **values)
        progress(stop, total)
    if missing:
        multihost_utils.sync_global_devices(f"reference {folder}")
    parts = [_read(_part(folder, start)) for start in starts]
    return {k: Joined([p[k] for p in parts]) for k in parts[0]}


def _claim(folder: Path, fingerprint: dict[str, str]) -> None:
    """Take a new folder, or one that already holds this very fingerprint."""
    path = folder / "fingerprint.json"
    if path.exists():
        found = json.loads(path.read_text())
        if found != fingerprint:
            keys = sorted(set(found) | set(fingerprint))
            rows = [f"  {k:<10} {found.get(k, '-'):<66} {fingerprint.get(k, '-')}" for k in keys]
            rows = [
                r for r, k in zip(rows, keys, strict=True) if found.get(k) != fingerprint.get(k)
            ]
            table = "\n".join([f"  {'':<10} {'cache':<66} wanted", *rows])
            raise UserError(
                f"reference cache {folder} is stale: it was computed from something else\n{table}\n"
                "delete the folder to compute it again"
            )
    else:
        write_whole(path, json.dumps(fingerprint, indent=1))


def _part(folder: Path, start: int) -> Path:
    return folder / f"part-{start:09d}.npz"


def _scored(batch: Batch, stats: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """The statistics of a batch's scored tokens, flat, in the order of its examples."""
    order = np.argsort(batch.example, axis=None, kind="stable")
    order = order[batch.example.reshape(-1)[order] >= 0]
    mask = batch.mask.reshape(-1, *batch.mask.shape[3:])[order]
    return {k: np.asarray(v).reshape(-1, *v.shape[3:])[order][mask] for k, v in stats.items()}


def _read(path: Path) -> dict[str, OnDisk]:
    try:
        return npz_arrays(path)
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as e:
        raise UserError(
            f"reference cache: {path} is damaged ({e}); delete this file to compute it again"
        ) from e


def cached_reference(stage: StageRun, split: str, console: Console) -> CachedStats | None:
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


def _pass(
    stage: StageRun, split: str, source: Path, name: str, console: Console
) -> dict[str, Joined]:
    """The statistics of a data set under a checkpoint, kept in the stage's folder `name`."""
    examples = stage.train if split == "train" else stage.held_out
    assert examples is not None
    config = repr(read_config(load.load_config(source)))
    fingerprint = {
        "weights": load.weights_fingerprint(source),
        "config": hashlib.sha256(config.encode()).hexdigest(),
        "tokenizer": tokenizer_fingerprint(stage.source),
        "data": examples.fingerprint,
        "dtype": stage.recipe.model.dtype,
        "needs": ", ".join(s.name for s in stage.task.objective.needs),
    }
    if stage.quantized and source == stage.source:
        fingerprint["quantized"] = stage.quantized

    def compute() -> Compute:
        console.print(f"{stage.name}: {name} pass over {split} data with {source}")
        return reference_forward(stage, source)

    def progress(done: int, total: int) -> None:
        console.print(f"{stage.name}: {name} {split} {done}/{total} examples")

    folder = stage.folder / name / split
    return cached(folder, fingerprint, stage.loader(examples), compute, progress)


def reference_forward(stage: StageRun, source: Path) -> Compute:
    """Load a reference and compile its forward pass over packed batches."""
    model = describe_model(source, stage.recipe.model, stage.mesh, stage.model.branches)
    for examples in (stage.train, stage.held_out):
        if examples is not None:
            check_ids(examples, model.config, source)
    own = source == stage.source
    params = starting_params(stage) if own else load.load_params(source, model)
    task = dataclasses.replace(stage.task, forward=model.forward)

    @functools.partial(jax.jit, out_shardings=replicated(stage.mesh))
    def forward(params: Params, batch: Batch) -> dict[str, jax.Array]:
        return jax.lax.map(lambda cells: sequence_stats(task, params, cells).token, batch)

    return lambda batch: forward(params, put_batch(batch, stage.mesh))
