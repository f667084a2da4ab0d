"""Tokenized examples: a prompt, its responses, and what became of the rows they came from."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[str, bool]
"""A piece of text, and whether its tokens are scored."""


class Branch(NamedTuple):
    """Tokens that follow the prompt: a response, or one of its turns and what leads to it."""

    ids: np.ndarray  # [length] int32
    scored: np.ndarray  # [length] bool; the other tokens are context
    response: int  # the response that the scored tokens belong to


class Example(NamedTuple):
    """Token ids of a prompt and of the branches that follow it, in the order of their responses.

    Prompt and branch are one joint tokenization. The first token of an empty prompt's branch has
    nothing before it, so it is never scored.
    """

    prompt: np.ndarray  # [P] int32
    branches: tuple[Branch, ...]
    columns: dict[str, float | tuple[float, ...]]
    where: str
    weight: float = 1.0  # of its loss, over 0

    @classmethod
    def of(cls, prompt: np.ndarray, *responses: np.ndarray, where: str = "") -> Example:
        """An example whose responses are scored from their first token to their last.

        The prompt has at least one token.
        """
        branches = (Branch(ids, np.ones(len(ids), bool), r) for r, ids in enumerate(responses))
        return cls(prompt, tuple(branches), {}, where)

    @property
    def responses(self) -> int:
        """R, the number of responses."""
        return self.branches[-1].response + 1

    @property
    def length(self) -> int:
        """Tokens of the prompt and all branches."""
        return len(self.prompt) + sum(len(branch.ids) for branch in self.branches)

    @property
    def longest(self) -> int:
        """Tokens of the prompt and its longest branch."""
        return len(self.prompt) + max(len(branch.ids) for branch in self.branches)

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt)

    @property
    def scored_counts(self) -> list[int]:
        """Scored tokens of each response."""
        counts = [0] * self.responses
        for branch in self.branches:
            counts[branch.response] += int(branch.scored.sum())
        return counts

    def read(self) -> Example:
        """The example itself, as it is in memory."""
        return self

    def scored(self, r: int) -> np.ndarray:
        """The scored tokens of response r, [length] int32."""
        return np.concatenate([b.ids[b.scored] for b in self.branches if b.response == r])


class Item(Protocol):
    """An example, its tokens in memory or not."""

    @property
    def length(self) -> int:
        """Tokens of the prompt and all branches."""
        ...

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt."""
        ...

    @property
    def scored_counts(self) -> Sequence[int]:
        """Scored tokens of each response."""
        ...

    @property
    def weight(self) -> float:
        """The weight of its loss."""
        ...

    @property
    def columns(self) -> dict[str, float | tuple[float, ...]]:
        """What the objective reads besides responses."""
        ...

    def read(self) -> Example:
        """The example."""
        ...


@dataclasses.dataclass(frozen=True)
class RowCounts:
    """What became of the rows of a data set."""

    kept: int
    """Examples."""
    dropped: dict[str, int]
    """Rows left out, by reason."""
    prompt_cut: int
    """Prompts that lost tokens on the left."""
    response_cut: dict[str, int]
    """Responses that lost tokens on the right, their stop token among them, by name."""
    noted: dict[str, int] = dataclasses.field(default_factory=dict)
    """Rows kept of which something is to be said, by what that is."""
    first: dict[str, str] = dataclasses.field(default_factory=dict)
    """The first row of each reason in `dropped` and `noted`."""

    @classmethod
    def merged(cls, parts: Sequence[RowCounts]) -> RowCounts:
        """The counts of several parts of a data set, at least one, in their order."""

        def added(name: str) -> dict[str, int]:
            total: Counter[str] = Counter()
            for part in parts:
                total.update(getattr(part, name))
            return dict(total)

        first: dict[str, str] = {}
        for part in reversed(parts):
            first |= part.first
        return cls(
            kept=sum(part.kept for part in parts),
            dropped=added("dropped"),
            prompt_cut=sum(part.prompt_cut for part in parts),
            response_cut=added("response_cut"),
            noted=added("noted"),
            first=first,
        )

    def table(self) -> list[tuple[str, ...]]:
        """Rows (what, count) to print, the first of them the heading."""
        rows = [("examples kept", self.kept)]
        rows += [(f"dropped: {reason}", n) for reason, n in sorted(self.dropped.items()) if n]
        rows += [("prompt cut on the left", self.prompt_cut)]
        for name, count in self.response_cut.items():
            rows += [(f"{name} cut on the right, stop token lost", count)]
        rows += sorted(self.noted.items())
        return [("data", "examples"), *((what, f"{count:,}") for what, count in rows)]


def preview(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[Span]:
    """What the model is scored on and what it is only shown: the prompt, then each branch."""
    pieces = [(example.prompt, False)]
    for branch in example.branches:
        edges = np.flatnonzero(np.diff(branch.scored)) + 1
        for start, stop in itertools.pairwise([0, *edges.tolist(), len(branch.ids)]):
            pieces.append((branch.ids[start:stop], bool(branch.scored[start])))
    return [(str(tokenizer.decode(ids.tolist())), scored) for ids, scored in pieces if len(ids)]
