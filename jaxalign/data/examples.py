"""Tokenized examples: a prompt, its responses, and what became of the rows they came from."""

from __future__ import annotations

import dataclasses
import hashlib
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[str, bool]
"""A piece of text, and whether its tokens are scored."""


class Example(NamedTuple):
    """Token ids of a prompt and its responses; prompt + response r is one joint tokenisation."""

    prompt: np.ndarray  # [P] int32
    responses: tuple[np.ndarray, ...]  # R of [length] int32
    columns: dict[str, float | tuple[float, ...]]
    where: str
    context: tuple[int, ...] = ()
    """R numbers of tokens at the start of each response that are shown, not scored; (): none."""

    def scored(self, r: int) -> int:
        """Scored tokens of response r: those after its context that a token precedes."""
        context = self.context[r] if self.context else 0
        return max(len(self.responses[r]) - max(context, len(self.prompt) == 0), 0)

    @property
    def length(self) -> int:
        """Tokens of the prompt and all responses."""
        return len(self.prompt) + sum(map(len, self.responses))


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
    """Responses that lost tokens on the right, by name."""
    eos_lost: dict[str, int]
    """Responses that lost their end-of-sequence token that way, by name."""

    def table(self) -> list[tuple[str, ...]]:
        """Rows (what, count) to print, the first of them the heading."""
        rows = [("examples kept", self.kept)]
        rows += [(f"dropped: {reason}", n) for reason, n in sorted(self.dropped.items()) if n]
        rows += [("prompt cut on the left", self.prompt_cut)]
        for name, count in self.response_cut.items():
            rows += [(f"{name} cut on the right", count)]
            rows += [(f"{name} lost its end token", self.eos_lost[name])]
        return [("data", "examples"), *((what, f"{count:,}") for what, count in rows)]


@dataclasses.dataclass(frozen=True)
class Examples:
    """A tokenized data set, in the order of its rows."""

    items: list[Example]
    counts: RowCounts

    def __len__(self) -> int:
        return len(self.items)

    @property
    def responses(self) -> int:
        """R, responses per example, the same for all."""
        return len(self.items[0].responses)

    @cached_property
    def offsets(self) -> np.ndarray:
        """[N * R + 1] int64: where the scored tokens of response r of example i begin.

        Entry i * R + r; the last entry is the number of scored tokens of the data set.
        """
        scored = [item.scored(r) for item in self.items for r in range(self.responses)]
        return np.concatenate([[0], np.cumsum(scored, dtype=np.int64)])

    @cached_property
    def max_scored(self) -> int:
        """T, the most scored tokens of a response, rounded up to a multiple of 16."""
        return -(-int(np.diff(self.offsets).max()) // 16) * 16

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all token ids, lengths, columns and contexts."""
        digest = hashlib.sha256()
        for item in self.items:
            parts = (item.prompt, *item.responses)
            digest.update(np.array([len(parts), *map(len, parts)], "<i8").tobytes())
            for part in parts:
                digest.update(part.astype("<i4", copy=False).tobytes())
            digest.update(repr(sorted(item.columns.items())).encode())
            digest.update(repr(item.context).encode() if any(item.context) else b"")
        return digest.hexdigest()


def preview(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[Span]:
    """What the model is scored on and what it is only shown: the prompt, then each response."""
    pieces = [(example.prompt, False)]
    for r, response in enumerate(example.responses):
        unscored = len(response) - example.scored(r)
        pieces += [(response[:unscored], False), (response[unscored:], True)]
    return [(str(tokenizer.decode(ids.tolist())), scored) for ids, scored in pieces if len(ids)]
