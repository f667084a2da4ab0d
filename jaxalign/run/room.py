"""Room on the disk: the bytes that the stages of a run will write, and whether they can."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..errors import RunError, UserError
from ..hf.load import weight_files
from .stage import StageRun
from .term import TermRun


class Need(NamedTuple):
    """Bytes that a stage writes."""

    checkpoint: int
    """One checkpoint."""
    most: int
    """The most checkpoints at a time."""
    left: int
    """Checkpoints at the end of the stage."""
    reference: int
    """Statistics of frozen models."""
    model: int
    """The exported model, and the adapters."""
    there: int
    """Bytes in the folder of the stage already."""

    @property
    def peak(self) -> int:
        """The most bytes at a time."""
        checkpoints = max(self.most * self.checkpoint, self.left * self.checkpoint + self.model)
        return self.reference + checkpoints

    @property
    def end(self) -> int:
        """Bytes at the end of the stage."""
        return self.reference + self.left * self.checkpoint + self.model


def need(stage: StageRun) -> Need:
    """The bytes that a stage writes, without its logs, which are small."""
    settings = stage.settings
    saves = math.ceil(stage.updates / settings.save_every) if settings.save_every else 1
    keep = settings.keep
    if settings.keep_best is not None:
        # Each evaluation may be the best so far, and the best one is kept too.
        saves, keep = saves + stage.updates // max(settings.eval_every, 1), keep + 1
    state = _bytes(stage.state_spec)
    return Need(
        checkpoint=state,
        most=min(saves, keep + 1),
        left=min(saves, keep),
        reference=sum(map(_reference_bytes, stage.terms)),
        model=_model_bytes(stage),
        there=_there(stage.folder),
    )


def _reference_bytes(term: TermRun) -> int:
    """Bytes of the statistics of frozen models."""
    objective = term.task.objective
    scored = sum(int(examples.offsets[-1]) for examples in term.sets().values())
    passes = (term.reference_mode == "cached") + objective.uses_start
    return 4 * scored * len(objective.needs) * passes


def peak(needs: Iterable[Need]) -> int:
    """The most bytes, over those on the disk already, that stages need one after another."""
    most = held = 0
    for one in needs:
        most = max(most, held + one.peak - one.there)
        held += one.end - one.there
    return most


def check_room(folder: Path, needs: dict[str, Need]) -> None:
    """Refuse a run that its disk has no room for.

    Raises:
      RunError: says how much each stage needs and how much is free.
    """
    wanted, left = peak(needs.values()), free(folder)
    if wanted <= left:
        return
    stages = "; ".join(f"{name}: {words(one)}" for name, one in needs.items())
    raise RunError(
        f"run.dir: the disk of {folder} has {size(left)} free, and the run needs {size(wanted)} "
        f"({stages}); free space, choose another run.dir, or lower the stages' keep"
    )


def words(one: Need) -> str:
    """The bytes of a stage in words."""
    parts = [f"{one.most} x {size(one.checkpoint)} of checkpoints", f"{size(one.model)} of models"]
    parts += [f"{size(one.reference)} of reference statistics"] if one.reference else []
    return ", ".join(parts)


def size(count: int) -> str:
    """Bytes, for people."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def free(folder: Path) -> int:
    """Free bytes of the disk of a folder, which need not exist."""
    return shutil.disk_usage(_nearest(folder)).free


def check_writable(folder: Path, setting: str) -> None:
    """Refuse a folder that cannot be made or written.

    Raises:
      UserError: names the setting and the obstacle.
    """
    at = _nearest(folder)
    if not at.is_dir():
        raise UserError(f"{setting}: {at} is a file; choose another folder (got {folder})")
    if not os.access(at, os.W_OK | os.X_OK):
        raise UserError(
            f"{setting}: {at} is not writable; choose another folder, or change its permissions "
            f"(got {folder})"
        )


def _nearest(folder: Path) -> Path:
    """The folder itself, or else the nearest of its parents that exists."""
    path = Path(folder).absolute()
    return next(p for p in (path, *path.parents) if os.path.lexists(p))


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _model_bytes(stage: StageRun) -> int:
    dtype = stage.recipe.model.export_dtype
    if dtype is None:
        model = sum(file.stat().st_size for file in weight_files(stage.source))
    else:
        leaves = jax.tree.leaves(stage.model.abstract)
        model = sum(math.prod(x.shape) for x in leaves) * jnp.dtype(dtype).itemsize
    return model + (0 if stage.adapted is None else _bytes(stage.adapted.abstract))


def _there(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
