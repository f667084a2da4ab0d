"""The sizes of the batches of a stage in rounds, which the next round has again.

Each round has data of its own, and so would compile programs of its own, although its answers are
about as long as those before.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ..data.loader import Loader, Sizes
from ..files import first_process, write_whole
from ..sealed import read_own, sealed
from ..settings import Recipe
from ..update.forward import Task

FILE = "sizes.json"
_ROUND = re.compile(r"(.+)-(\d+)/(.+)")


def round_before(recipe: Recipe, name: str) -> str | None:
    """The same stage in the round before; None: there is none."""
    match = _ROUND.fullmatch(name)
    if match is None:
        return None
    rounds, number, stage = match.groups()
    before = f"{rounds}-{int(number) - 1}/{stage}"
    return before if before in recipe.training else None


def sizes_before(recipe: Recipe, name: str) -> dict[str, Sizes]:
    """{data set: the sizes of its batches in the round before}; empty: there are none.

    Raises:
      RunError: the file is damaged.
    """
    before = round_before(recipe, name)
    file = Path(recipe.run.dir) / (before or name) / FILE
    if before is None or not file.exists():
        return {}
    remedy = "delete it, and the next round compiles programs of its own"
    return read_own(file, dict[str, Sizes], remedy)


def first_sizes(name: str, max_scored: int) -> Sizes | None:
    """What the first round fixes: T, with room for longer answers later; none outside of rounds.

    Args:
      name: the name of the stage.
      max_scored: the most scored tokens of a response of its data.
    """
    return Sizes((), (), 1 << (max_scored - 1).bit_length()) if _ROUND.fullmatch(name) else None


def keep_sizes(
    recipe: Recipe, name: str, terms: Iterable[tuple[Task, Loader, Loader | None]]
) -> None:
    """Write the sizes of the batches of a stage in rounds, for the next round.

    Args:
      recipe: the recipe.
      name: the name of the stage; nothing is written if it is in no round.
      terms: each term of the stage, with the batches of its training and its held-out data.
    """
    if not _ROUND.fullmatch(name) or not first_process():
        return
    sizes: dict[str, Sizes] = {}
    for task, train, held_out in terms:
        own = {"train": train.sizes}
        if held_out is not None:
            own["held_out"] = held_out.sizes_in_order
        sizes |= task.named(own)
    write_whole(Path(recipe.run.dir) / name / FILE, sealed(sizes))
