"""The reference pass: token statistics of a frozen model, computed once and kept on disk.

A cache is a folder of `part-*.npz` files, each with the statistics of a run of examples, and a
`fingerprint.json` of everything they depend on. A part is written whole or not at all and carries
zip's CRC-32, so a pass that was killed goes on with the first part that is missing, and damage is
found when it is read.
"""

from __future__ import annotations

import json
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from ..core.batch import Batch
from ..data.loader import Loader
from ..errors import UserError
from ..files import first_process, whole_file, write_whole

PART = 1024  # examples per part, rounded up to whole batches

Compute = Callable[[Batch], Mapping[str, jax.Array]]
"""A packed batch -> {statistic: [n, S, b, R, T]}, whole on every host."""


def cached(
    folder: pathlib.Path,
    fingerprint: Mapping[str, str],
    loader: Loader,
    compute: Callable[[], Compute],
    progress: Callable[[int, int], None],
) -> dict[str, np.ndarray]:
    """The reference statistics of a data set, from disk where they are there.

    Args:
      folder: of the cache, on storage that all hosts share; made if missing.
      fingerprint: what the statistics depend on: weights, tokenizer, data, dtype, needs.
      loader: of the data set.
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
    return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}


def _claim(folder: pathlib.Path, fingerprint: dict[str, str]) -> None:
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


def _part(folder: pathlib.Path, start: int) -> pathlib.Path:
    return folder / f"part-{start:09d}.npz"


def _scored(batch: Batch, stats: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """The statistics of a batch's scored tokens, flat, in the order of its examples."""
    order = np.argsort(batch.example, axis=None, kind="stable")
    order = order[batch.example.reshape(-1)[order] >= 0]
    mask = batch.mask.reshape(-1, *batch.mask.shape[3:])[order]
    return {k: np.asarray(v).reshape(-1, *v.shape[3:])[order][mask] for k, v in stats.items()}


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as part:
            return {k: part[k] for k in part.files}
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as e:
        raise UserError(
            f"reference cache: {path} is damaged ({e}); delete this file to compute it again"
        ) from e
