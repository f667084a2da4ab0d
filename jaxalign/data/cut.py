"""From sequences to an example: its limits of length, cut or dropped over them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..errors import UserError
from ..settings import Data
from .encode import Encoded, Ids, common_prefix
from .examples import Branch, Example
from .records import Record
from .tally import Tally


class Limits(NamedTuple):
    """Limits of length, in tokens."""

    length: int  # of a prompt and a response
    prompt: int
    response: int  # the least that a cut leaves
    too_long: str

    @classmethod
    def of(cls, settings: Data) -> Limits:
        """The limits of a data set.

        Raises:
          UserError: they leave no room for a response.
        """
        prompt = settings.max_prompt or max(settings.max_length // 2, 1)
        if prompt >= settings.max_length:
            raise UserError(
                f"data: max_prompt {prompt} leaves no room for a response in max_length "
                f"{settings.max_length}, tokens; lower max_prompt or raise max_length"
            )
        return cls(settings.max_length, prompt, settings.min_response, settings.too_long)


class _Cut(NamedTuple):
    """A sequence within the limits."""

    prompt: Ids  # what precedes the first scored token
    rest: Ids
    scored: np.ndarray  # [len(rest)] bool
    response: int


def make_example(
    record: Record,
    sequences: Sequence[Encoded],
    limits: Limits,
    front: Ids,
    names: Sequence[str],
    tally: Tally,
) -> Example | None:
    """The example of a record; None, and counted, where there is nothing to learn from it.

    Args:
      record: its columns and its place are read.
      sequences: its tokens, in the order of the responses.
      limits: limits of length.
      front: the tokens that a prompt which begins with them keeps when it is cut on the left.
      names: names of the responses, for the counts; further responses have the last one.
      tally: counts; increased.

    Raises:
      UserError: the record is over a limit, and that is an error.
    """
    over = _over_limit(sequences, limits)
    if over and limits.too_long == "error":
        raise UserError(
            f"{record.where}: {over}; shorten it, raise the limit or set data.too_long to "
            "'cut_response', 'cut_prompt' or 'drop'"
        )
    if over and limits.too_long == "drop":
        tally.dropped.add("too long", record.where)
        return None
    room = _room(sequences, limits)
    kept = [_cut(sequence, room, limits.length, front) for sequence in sequences]
    scored = Counter()
    for cut in kept:
        scored[cut.response] += int(cut.scored.sum())
    if reason := _nothing_left(sequences, kept, scored, limits.response):
        tally.dropped.add(reason, record.where)
        return None
    tally.prompt_cut += any(s.spans[0][0] > room for s in sequences)
    for before, after in zip(sequences, kept, strict=True):
        name = names[min(after.response, len(names) - 1)]
        tally.response_cut[name] += _is_cut(before, after)
    shared = common_prefix([cut.prompt for cut in kept])
    branches = tuple(_branch(cut, shared) for cut in kept)
    columns = dict(record.columns)
    if record.label is not None:
        columns["label"] = record.label
    return Example(_array(kept[0].prompt[:shared]), branches, columns, record.where, record.weight)


def _room(sequences: Sequence[Encoded], limits: Limits) -> int:
    """The most tokens of a prompt."""
    if limits.too_long != "cut_prompt":
        return limits.prompt
    longest = max(len(s.ids) - s.spans[0][0] for s in sequences)
    return max(min(limits.prompt, limits.length - longest), 1)


def _cut(sequence: Encoded, room: int, length: int, front: Ids) -> _Cut:
    """The prompt cut on the left, its front kept, then the response on the right."""
    start = sequence.spans[0][0]
    prompt, rest = sequence.ids[:start], sequence.ids[start:]
    scored = np.zeros(len(rest), bool)
    for first, stop in sequence.spans:
        scored[first - start : stop - start] = True
    if len(prompt) > room:
        kept = front[:room] if prompt[: len(front)] == front else []
        prompt = kept + prompt[len(prompt) - room + len(kept) :]
    left = length - len(prompt)
    return _Cut(prompt, rest[:left], _predicted(scored[:left], prompt), sequence.response)


def _is_cut(before: Encoded, after: _Cut) -> bool:
    """Whether a response lost tokens on the right."""
    return len(after.rest) < len(before.ids) - before.spans[0][0]


def _predicted(scored: np.ndarray, prompt: Ids) -> np.ndarray:
    """The scored tokens that a token precedes."""
    if not prompt:
        scored[:1] = False
    return scored


def _branch(cut: _Cut, shared: int) -> Branch:
    """What follows the shared prompt: the rest of the sequence's own as context, and the answer."""
    own = cut.prompt[shared:]
    scored = np.concatenate([np.zeros(len(own), bool), cut.scored])
    return Branch(_array(own + cut.rest), scored, cut.response)


def _nothing_left(
    before: Sequence[Encoded], kept: Sequence[_Cut], scored: Counter[int], least: int
) -> str | None:
    """Why there is nothing to learn from an example; None if there is."""
    if min(scored.values()) == 0:
        return "no scored token"
    pairs = zip(before, kept, strict=True)
    if any(_is_cut(*pair) and scored[pair[1].response] < least for pair in pairs):
        return "a cut left too little of a response"
    answers: dict[int, list[tuple[Ids, Ids]]] = {}
    for cut in kept:
        answers.setdefault(cut.response, []).append((cut.prompt, cut.rest))
    prompts = {s.response: s.ids[: s.spans[0][0]] for s in reversed(before)}
    others = [answers[r] for r in prompts if r > 0 and prompts[r] == prompts[0]]
    if others and all(answer == answers[0] for answer in others):
        return "identical responses"
    return None


def _over_limit(sequences: Sequence[Encoded], limits: Limits) -> str:
    """What is longer than its limit, in words; empty if nothing is."""
    most = max(sequence.spans[0][0] for sequence in sequences)
    if limits.too_long != "cut_prompt" and most > limits.prompt:
        return f"prompt has {most} tokens; data.max_prompt is {limits.prompt}"
    longest = max(len(sequence.ids) for sequence in sequences)
    if longest > limits.length:
        return f"prompt + response has {longest} tokens; data.max_length is {limits.length}"
    return ""


def _array(ids: Ids) -> np.ndarray:
    return np.array(ids, np.int32)
