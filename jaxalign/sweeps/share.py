"""Finished work of one run that another of the same sweep would repeat, taken over by links."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from jax.experimental import multihost_utils

from ..files import first_process
from ..recipe.diff import differences
from ..recipe.read import resolved
from ..run.preflight import pending
from ..run.train import FREE_TO_CHANGE
from ..settings import Recipe

CACHES = ("reference", "start")
"""Folders of a stage with statistics of frozen models, whose parts know what they depend on."""


def take(recipe: Recipe, others: Sequence[Recipe]) -> list[str]:
    """Link into the folder of a run the work of other runs that it would repeat.

    The work is the data of a small world, and the stages that are finished and equal in every
    setting up to them. Files of a finished stage are replaced as a whole if ever, never changed, so
    that a link is as good as a copy.

    Args:
      recipe: the recipe of the run, which has claimed its folder.
      others: the recipes of runs that have worked before it.

    Returns:
      The names of the stages taken over.
    """
    taken = []
    if first_process():
        _take_world(recipe, others)
        for name in recipe.stages:
            product = Path(recipe.product(name))
            if product.exists():
                continue
            finished = (o for o in others if name in o.stages and Path(o.product(name)).exists())
            source = next((o for o in finished if _same_until(recipe, o, name)), None)
            if source is None or product.parent.exists():
                break
            _link(Path(source.product(name)).parent, product.parent)
            taken.append(name)
    multihost_utils.sync_global_devices(f"taken {recipe.run.dir}")
    return taken


def take_caches(recipe: Recipe, others: Sequence[Recipe]) -> None:
    """Link the cached statistics of frozen models for the next stage of a run.

    Each part of a cache has a fingerprint of all that it depends on, so that a wrong one is
    computed again. Arguments as for `take`, which comes first: after this the stage has a folder.
    """
    if first_process() and (waiting := pending(recipe)):
        _take_caches(recipe, waiting[0], others)
    multihost_utils.sync_global_devices(f"caches {recipe.run.dir}")


def _take_world(recipe: Recipe, others: Sequence[Recipe]) -> None:
    """The data and the random model of the small world, if another run has the same."""
    world = Path(recipe.world_dir)
    for other in others:
        if recipe.world is None or world.exists():
            return
        made = Path(other.world_dir)
        if (other.world, other.model) == (recipe.world, recipe.model) and (made / "model").exists():
            _link(made, world)


def _take_caches(recipe: Recipe, name: str, others: Sequence[Recipe]) -> None:
    """The cached statistics of the stage, of the run that most likely has the same."""
    if name not in recipe.training:
        return
    goals = recipe.training[name].goals()

    def same_data(other: Recipe) -> bool:
        theirs = other.training[name].goals() if name in other.training else {}
        same = theirs.keys() == goals.keys() and all(
            (goal.data, goal.reference) == (theirs[term].data, theirs[term].reference)
            for term, goal in goals.items()
        )
        before = recipe.before(name)
        return same and (before is None or _same_until(recipe, other, before))

    for other in filter(same_data, others):
        for kind in CACHES:
            source = Path(other.product(name)).parent / kind
            target = Path(recipe.product(name)).parent / kind
            if source.exists() and not target.exists():
                _link(source, target)


def _same_until(recipe: Recipe, other: Recipe, name: str) -> bool:
    """Whether two recipes are equal in all that a stage and the stages before it depend on."""
    stages = list(recipe.stages)
    until = stages[: stages.index(name) + 1]
    if list(other.stages)[: len(until)] != until:
        return False
    later = {*recipe.stages, *other.stages} - {*until}
    free = (*FREE_TO_CHANGE, *(f"stages.{one}." for one in later))
    changed = differences(resolved(other), resolved(recipe))
    return all(change.startswith(free) for change in changed)


def _link(source: Path, target: Path) -> None:
    """A folder of links to the files of another, there as a whole or not at all."""
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part, copy_function=_linked)
    target.parent.mkdir(parents=True, exist_ok=True)
    part.rename(target)


def _linked(source: str, target: str) -> str:
    """A link to a file; a copy, where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
