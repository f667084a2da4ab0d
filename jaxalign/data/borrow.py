"""Mismatched responses: every example is given the response to another prompt."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from ..core.layouts import Layout
from ..errors import UserError
from .examples import Branch, RowCounts
from .store import ROWS, Examples, Part


def borrowed_parts(
    own: Examples, max_length: int, seed: int, where: str
) -> Iterator[tuple[Part, int]]:
    """The parts of a data set with borrowed responses, and how many of these are cut in each.

    Args:
      own: the data set, one response per example.
      max_length: the most tokens of a prompt and a response.
      seed: the seed of the partners.
      where: the name of the data set in messages.

    Raises:
      UserError: all examples have the same prompt.
    """
    partners = _partners([hashlib.sha256(item.prompt.tobytes()).digest() for item in own], seed)
    if partners is None:
        raise UserError(
            f"{where}: the mismatched responses of this objective come from other prompts, but "
            f"all {len(own)} examples have the same prompt; give data with several prompts"
        )
    for start in range(0, len(own), ROWS):
        items, cut = [], 0
        for item, partner in zip(own[start : start + ROWS], partners[start:], strict=False):
            borrowed = own[partner].branches[0]
            room = max_length - len(item.prompt)
            cut += room < len(borrowed.ids)
            given = Branch(borrowed.ids[:room], borrowed.scored[:room], 1)
            items.append(item._replace(branches=(*item.branches, given)))
        yield Part.of(items), cut


def with_cut(counts: RowCounts, layout: Layout, cut: int) -> RowCounts:
    """The counts of a data set whose borrowed responses were cut `cut` times."""
    return dataclasses.replace(
        counts, response_cut=counts.response_cut | {layout.responses[-1]: cut}
    )


def _partners(prompts: Sequence[bytes], seed: int) -> list[int] | None:
    """For each example the next one, around a random ring, whose prompt differs; None if none."""
    if len(set(prompts)) < 2:
        return None
    ring = np.random.default_rng(seed).permutation(len(prompts)).tolist()
    partner = list(range(len(prompts)))
    after = ring[0]
    # Backwards, so that an example with its neighbor's prompt takes its neighbor's partner; the
    # second round settles those whose search passes the ring's seam.
    for i in ring[::-1] * 2:
        partner[i] = after if prompts[after] != prompts[i] else partner[after]
        after = i
    return partner
