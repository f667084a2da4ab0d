"""Several data sets as one: how many examples of each an epoch has, and the order of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ..errors import UserError
from ..settings import Source
from .examples import RowCounts
from .store import Examples


class Mixture(NamedTuple):
    """Examples of each source of a data set: all, and how many of them an epoch has."""

    sizes: tuple[int, ...]
    draws: tuple[int, ...]  # over its size: some are repeated in the epoch

    @property
    def epoch(self) -> int:
        """Examples of an epoch."""
        return sum(self.draws)


def whole(count: int) -> Mixture:
    """One source, every example of which is once in an epoch."""
    return Mixture((count,), (count,))


def mix(sources: Sequence[Source], read: Sequence[Examples]) -> tuple[Examples, Mixture]:
    """The examples of all sources, one source after another, and their mixture.

    Args:
      sources: the sources of the recipe.
      read: the examples of each.

    Raises:
      UserError: the examples of two sources cannot be in one batch; names both.
    """
    first = _kind(read[0])
    for source, examples in zip(sources[1:], read[1:], strict=True):
        if (found := _kind(examples)) != first:
            raise UserError(
                f"data.mixture: {sources[0].path} has {first}, but {source.path} has {found}; the "
                "sources of a mixture have the same, so bring them into one form"
            )
    parts = tuple(part for examples in read for part in examples.parts)
    counts = RowCounts.merged([examples.counts for examples in read])
    sizes = tuple(map(len, read))
    return Examples(parts, counts), Mixture(sizes, draws(sources, sizes))


def draws(sources: Sequence[Source], sizes: Sequence[int]) -> tuple[int, ...]:
    """How many examples of each source an epoch has, at least one.

    A source with `rows` gives so many, a source with neither gives all, and the others give the
    epoch their shares. Where all have shares, the epoch is the largest that repeats no example.
    """
    fixed = [s.rows or n for s, n in zip(sources, sizes, strict=True) if s.share is None]
    shares = [source.share or 0.0 for source in sources]
    if fixed:
        epoch = sum(fixed) / (1 - sum(shares))
    else:
        epoch = min(n / share for n, share in zip(sizes, shares, strict=True))
    given = iter(fixed)
    return tuple(max(round(share * epoch), 1) if share else next(given) for share in shares)


def order(seed: int, epoch: int, n: int, source: int | None = None) -> np.ndarray:
    """[n] the order of n examples in an epoch: the same for the same arguments, everywhere.

    Args:
      seed: the seed.
      epoch: the number of the epoch; for a source, of the pass over it.
      n: how many examples.
      source: the number of a source, which has orders of its own; None: of the whole epoch.
    """
    key = () if source is None else (source,)
    bits = np.random.Philox(np.random.SeedSequence([seed, epoch], spawn_key=key))
    return np.random.Generator(bits).permutation(n)


@lru_cache(maxsize=4)
def epoch_order(mixture: Mixture, seed: int, epoch: int) -> np.ndarray:
    """[mixture.epoch] the examples of an epoch in order, as places in the sources joined.

    Each source goes on where the epoch before left it, through passes over all of its examples.
    """
    found, first = [], 0
    for i, (n, count) in enumerate(zip(*mixture, strict=True)):
        if count % n:

            def one_pass(number: int, i: int = i, n: int = n) -> np.ndarray:
                return order(seed, number, n, i)

            own = joined(one_pass, n, epoch * count, count)
        else:
            own = np.arange(count) % n  # whole passes; the order of the epoch is all they need
        found.append(first + own)
        first += n
    examples = np.concatenate(found)[order(seed, epoch, mixture.epoch)]
    examples.setflags(write=False)
    return examples


def joined(pass_order: Callable[[int], np.ndarray], n: int, start: int, count: int) -> np.ndarray:
    """[count] places `start` to `start + count - 1` of passes joined end to end.

    Args:
      pass_order: maps the number of a pass to its order, [n].
      n: length of a pass.
      start: the first place.
      count: how many places.
    """
    passes, places = np.divmod(np.arange(start, start + count), n)
    return np.concatenate([pass_order(int(p))[places[passes == p]] for p in np.unique(passes)])


def _kind(examples: Examples) -> str:
    """What examples of one batch have in common, in words."""
    columns = ", ".join(sorted(examples.parts[0].columns)) or "none"
    return f"responses: {examples.responses}, columns: {columns}"
