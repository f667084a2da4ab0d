"""Token ids of texts, word by word: a word is tokenized once, but for the first of a text.

A byte-level BPE cuts a text into words by a regular expression and encodes each word alone. None of
the alternatives below matches a space after another character than white space, nor looks further
than over white space. So between such a character and a space with another one after it there is
always an edge of two words, and the ids of both sides, tokenized apart, are the ids of the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from ..errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = list[int]

CONTRACTIONS = ("s", "t", "re", "ve", "m", "ll", "d")
ALTERNATIVES = {
    *(f"'{end}" for end in CONTRACTIONS),
    "'(?:[sdmt]|ll|ve|re)",
    f"(?i:{'|'.join(chr(39) + end for end in CONTRACTIONS)})",
    r" ?\p{L}+",
    r"[^\r\n\p{L}\p{N}]?\p{L}+",
    r" ?\p{N}+",
    r"\p{N}+",
    r"\p{N}",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+",
    r"\s*[\r\n]",
    r"\s+(?!\S)",
    r"\s+",
}
"""Alternatives of the expressions of GPT-2, Llama 3, Qwen 2 and their relatives."""
SOLID = "!-~\u00a1-\u024f\u0370-\u052f\u3041-\u30ff\u4e00-\u9fff\uac00-\ud7a3"
"""Characters that are no white space, nor are under NFC."""
EDGE = re.compile(f" (?<=[{SOLID}] )(?=[{SOLID}])")
"""The space after an edge; the literal comes first, which makes the search twice as fast."""
LONGEST = 2**22
"""The most characters tokenized in one piece: 25 s and 2 GB of a byte-level BPE on one CPU core."""
MOST_WORDS = 1_000_000
"""Words that are remembered; over this number all are forgotten."""


class Words:
    """Texts to token ids by their words."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        """Take a tokenizer; `cuts_at_edges` must be true of it."""
        self._tokenizer = tokenizer
        self._known: dict[str, Ids] = {}
        """{word after an edge, without its space: ids of the word with its space}."""

    def ids(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of texts, without the special tokens that a tokenizer adds."""
        if len(self._known) > MOST_WORDS:
            self._known.clear()
        split = [EDGE.split(text) for text in texts]
        first = plain_ids(self._tokenizer, [words[0] for words in split])
        later = [words[1:] for words in split]
        known = self._known
        if new := [word for word in {*chain.from_iterable(later)} if word not in known]:
            spaced = [f" {word}" for word in new]
            known.update(zip(new, plain_ids(self._tokenizer, spaced), strict=True))
        return [
            [*ids, *chain.from_iterable(map(known.__getitem__, words))]
            for ids, words in zip(first, later, strict=True)
        ]


def check_pieces(texts: Iterable[str], where: str, *, by_words: bool) -> None:
    """Refuse texts that would take minutes and gigabytes to tokenize in one piece.

    Args:
      texts: the texts of a record.
      where: its place, for messages.
      by_words: whether `Words` tokenizes them.

    Raises:
      UserError: a piece of one is longer than `LONGEST`.
    """
    long = [text for text in texts if len(text) > LONGEST]
    pieces = (piece for text in long for piece in (EDGE.split(text) if by_words else [text]))
    longest = max(map(len, pieces), default=0)
    if longest > LONGEST:
        raise UserError(
            f"{where}: has a text of {longest:,} characters that cannot be tokenized in parts; the "
            f"most is {LONGEST:,}; shorten it, or drop the row"
        )


def plain_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[Ids]:
    """The ids of texts, without the special tokens that a tokenizer adds."""
    encoded: Any = tokenizer(
        texts,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return encoded["input_ids"]


def cuts_at_edges(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer is a BPE by words that have an edge at every `EDGE`."""
    fast: Any = tokenizer
    about = json.loads(fast.backend_tokenizer.to_str())
    steps = about["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps])
    return (
        about["model"]["type"] == "BPE"
        and not about["model"].get("dropout")
        and (about["normalizer"] or {"type": "NFC"})["type"] == "NFC"
        and all(map(_is_plain, about["added_tokens"]))
        and all(map(_keeps_edges, steps))
        and any(map(_makes_edges, steps))
    )


def _is_plain(token: dict[str, Any]) -> bool:
    """Whether an added token is found by its characters alone, and has no edge in it."""
    spread = token["lstrip"] or token["rstrip"] or token["single_word"]
    return not spread and " " not in token["content"]


def _keeps_edges(step: dict[str, Any]) -> bool:
    """Whether a step of the pre-tokenizer does the same on both sides of an edge, cut or not."""
    if step.get("type") == "Split":
        expression = step["pattern"].get("Regex", "")
        return (
            step["behavior"] == "Isolated"
            and not step["invert"]
            and ALTERNATIVES.issuperset(_alternatives(expression))
        )
    if step.get("type") == "ByteLevel":
        return not step["add_prefix_space"]
    return step.get("type") == "Digits"


def _makes_edges(step: dict[str, Any]) -> bool:
    """Whether a step of the pre-tokenizer cuts at every edge."""
    if step["type"] == "Split":
        return {r"\s+(?!\S)", r"\s+"} <= {*_alternatives(step["pattern"].get("Regex", ""))}
    return step["type"] == "ByteLevel" and step["use_regex"]


def _alternatives(expression: str) -> Iterator[str]:
    """The alternatives of a regular expression, cut at each | outside of parentheses."""
    depth, start = 0, 0
    for i, character in enumerate(expression):
        depth += (character == "(") - (character == ")")
        if character == "|" and not depth:
            yield expression[start:i]
            start = i + 1
    yield expression[start:]
