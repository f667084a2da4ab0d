"""Text to token ids: the prompt's end, special tokens, truncation."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..core.layouts import Layout
from ..errors import UserError
from ..settings import Data
from .chat import Messages, render
from .examples import Example, Examples, RowCounts, preview
from .fields import Field, Raw
from .read import fit_records
from .records import Record
from .sources import raw_records

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Example",
    "Examples",
    "RowCounts",
    "encode_prompts",
    "load_examples",
    "make_examples",
    "preview",
]

CHUNK = 1000
"""Rows tokenized in one call, so that the tokenizer's threads have work."""

Ids = list[int]


class _Specials(NamedTuple):
    """Special tokens of a tokenizer."""

    bos: int | None
    eos: int | None
    prefix: Ids  # what the tokenizer puts in front of a text by itself: BOS or nothing


@dataclasses.dataclass
class _Tally:
    """What happens to the rows, counted as they pass."""

    dropped: Counter[str] = dataclasses.field(default_factory=Counter)
    prompt_cut: int = 0
    response_cut: Counter[str] = dataclasses.field(default_factory=Counter)
    eos_lost: Counter[str] = dataclasses.field(default_factory=Counter)

    def counts(self, kept: int, names: Sequence[str]) -> RowCounts:
        cut, lost = ({n: c[n] for n in names} for c in (self.response_cut, self.eos_lost))
        return RowCounts(kept, dict(+self.dropped), self.prompt_cut, cut, lost)


def load_examples(
    settings: Data,
    path: str,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    layout: Layout,
    *,
    seed: int,
    columns: Collection[str] = (),
) -> Examples:
    """`make_examples` of a .jsonl, .jsonl.gz or .parquet file, a folder or a hub data set."""
    rows = raw_records(path, split)
    return make_examples(settings, rows, path, tokenizer, layout, seed=seed, columns=columns)


def make_examples(
    settings: Data,
    rows: Iterable[tuple[str, Raw]],
    where: str,
    tokenizer: PreTrainedTokenizerBase,
    layout: Layout,
    *,
    seed: int,
    columns: Collection[str] = (),
) -> Examples:
    """Tokenize the rows of a data set.

    The prompt is the longest common prefix of the token ids of the prompt alone and of the prompt
    with every response; the rest of each joint tokenization is the response, so no byte is lost if
    a token spans the boundary. If the responses have different prompts, the remainder of each
    prompt is the context of its response. BOS is put in front if the tokenizer puts one there, EOS
    at the end of text responses; each at most once, neither around a chat template.

    Args:
      settings: limits and what to do at them; `path` and `split` are not read.
      rows: the rows of the data set, each with its place for messages.
      where: the name of the data set in messages.
      tokenizer: a Hugging Face tokenizer; a pad token is not needed.
      layout: the responses of an example.
      seed: the seed of the partners of a layout that borrows responses; others ignore it.
      columns: what the objective reads besides responses.

    Raises:
      UserError: the data, the limits and the tokenizer do not fit together; says how.
    """
    if settings.max_prompt >= settings.max_length:
        raise UserError(
            f"data: max_prompt {settings.max_prompt} leaves no room for a response in max_length "
            f"{settings.max_length}, tokens; lower max_prompt or raise max_length"
        )
    tally = _Tally()
    names = layout.responses
    records = fit_records(settings, rows, layout, tally.dropped, columns)
    specials = _specials(tokenizer)
    items = [
        example
        for row, groups in _encode(records, tokenizer, specials)
        if (example := _example(row, groups, specials, settings, names, tally)) is not None
    ]
    if not items:
        reasons = ", ".join(f"{n} dropped: {reason}" for reason, n in tally.dropped.items())
        raise UserError(f"{where}: no example is left; {reasons or 'it has no rows'}")
    if layout.borrowed:
        items = _with_borrowed(items, settings.max_length, seed, where, names[-1], tally)
    return Examples(items, tally.counts(len(items), names))


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str | Messages], where: str
) -> list[np.ndarray]:
    """Prompts to be answered -> token ids, each [length], with the special tokens of training.

    Args:
      tokenizer: a Hugging Face tokenizer.
      prompts: text, or messages for the chat template.
      where: what to call them in errors.

    Raises:
      UserError: the chat template is missing or refuses the messages.
    """
    bos = _specials(tokenizer).prefix
    encoded = []
    for prompt in prompts:
        if isinstance(prompt, str):
            (ids,) = _ids(tokenizer, [prompt])
            ids = ids if ids[:1] == bos else bos + ids
        else:
            (ids,) = _ids(tokenizer, render(tokenizer, prompt, [], where))
        encoded.append(_array(ids))
    return encoded


def _encode(
    rows: Iterable[Record], tokenizer: PreTrainedTokenizerBase, specials: _Specials
) -> Iterator[tuple[Record, list[list[Ids]]]]:
    """Rows, each with the ids of its prompts alone and of each prompt with its responses."""
    rows = iter(rows)
    while chunk := list(itertools.islice(rows, CHUNK)):
        texts = [[_texts(row, *group, tokenizer) for group in _groups(row)] for row in chunk]
        ids = iter(_ids(tokenizer, [text for row in texts for group in row for text in group]))
        for row, row_texts in zip(chunk, texts, strict=True):
            groups = [[next(ids) for _ in group] for group in row_texts]
            if isinstance(row.prompt, str):
                groups = [_with_specials(group, specials, row.where) for group in groups]
            yield row, groups


def _groups(row: Record) -> list[tuple[Field, list[int]]]:
    """The prompts of a row, each with the places of the responses to it."""
    if not row.prompts:
        return [(row.prompt, list(range(len(row.responses))))]
    places = range(len(row.prompts))
    first = [r for r in places if row.prompts.index(row.prompts[r]) == r]
    return [
        (row.prompts[r], [s for s in places if row.prompts[s] == row.prompts[r]]) for r in first
    ]


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[Ids]:
    encoded: Any = tokenizer(
        texts,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return encoded["input_ids"]


def _specials(tokenizer: PreTrainedTokenizerBase) -> _Specials:
    bos, eos = (
        token if isinstance(token, int) else None
        for token in (tokenizer.bos_token_id, tokenizer.eos_token_id)
    )
    encoded: Any = tokenizer("a")
    first = encoded["input_ids"][:1]
    return _Specials(bos, eos, [bos] if bos is not None and first == [bos] else [])


def _texts(
    row: Record, prompt: Field, places: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """A prompt alone, and with each of the responses at the places given."""
    responses = [row.responses[r] for r in places]
    if isinstance(prompt, str):
        return [prompt, *(prompt + str(response) for response in responses)]
    messages = [response for response in responses if isinstance(response, list)]
    return render(tokenizer, prompt, messages, row.where)


def _with_specials(sequences: list[Ids], specials: _Specials, where: str) -> list[Ids]:
    _, eos, prefix = specials
    if eos is None:
        raise UserError(
            f"{where}: the tokenizer has no EOS token, so a model could not learn to stop; "
            "set 'eos_token' in tokenizer_config.json"
        )
    prompt, *full = (ids if ids[:1] == prefix else prefix + ids for ids in sequences)
    return [prompt, *(ids if ids[-1:] == [eos] else [*ids, eos] for ids in full)]


def _common_prefix(sequences: Sequence[Ids]) -> int:
    """How many ids all sequences have in common from the start."""
    shortest = min(map(len, sequences))
    stacked = np.array([ids[:shortest] for ids in sequences])
    differ = (stacked != stacked[0]).any(0)
    return int(differ.argmax()) if differ.any() else shortest


def _split(row: Record, groups: Sequence[Sequence[Ids]]) -> tuple[list[Ids], list[Ids]]:
    """The prompt and the tokens of each response, cut at the end of their common prefix."""
    prompts: list[Ids] = [[]] * len(row.responses)
    responses = list(prompts)
    for (_, places), sequences in zip(_groups(row), groups, strict=True):
        boundary = _common_prefix(sequences)
        for r, ids in zip(places, sequences[1:], strict=True):
            prompts[r], responses[r] = ids[:boundary], ids[boundary:]
    return prompts, responses


def _example(
    row: Record,
    groups: list[list[Ids]],
    specials: _Specials,
    settings: Data,
    names: Sequence[str],
    tally: _Tally,
) -> Example | None:
    """The example of a row; None, and counted, where there is nothing to learn from it."""
    prompts, responses = _split(row, groups)
    over = _over_limit(prompts, responses, settings)
    if over and settings.too_long == "error":
        raise UserError(
            f"{row.where}: {over}; shorten it, raise the limit or set data.too_long to "
            "'truncate' or 'drop'"
        )
    if over and settings.too_long == "drop":
        tally.dropped["too long"] += 1
        return None
    kept_prompts = [_cut_prompt(prompt, settings.max_prompt, specials.bos) for prompt in prompts]
    room = [settings.max_length - len(prompt) for prompt in kept_prompts]
    kept = [ids[:n] for ids, n in zip(responses, room, strict=True)]
    shared = _common_prefix(kept_prompts) if row.prompts else len(kept_prompts[0])
    own = [prompt[shared:] for prompt in kept_prompts]
    branches = tuple(_array(o + ids) for o, ids in zip(own, kept, strict=True))
    context = tuple(map(len, own)) if any(own) else ()
    columns = dict(row.columns) if row.label is None else {**row.columns, "label": row.label}
    example = Example(_array(kept_prompts[0][:shared]), branches, columns, row.where, context)
    if any(example.scored(r) == 0 for r in range(len(kept))):
        tally.dropped["no scored token"] += 1
        return None
    alike = [ids == kept[0] for ids, p in zip(kept, prompts, strict=True) if p == prompts[0]]
    if len(alike) > 1 and all(alike):
        tally.dropped["identical responses"] += 1
        return None
    tally.prompt_cut += any(len(p) > settings.max_prompt for p in prompts)
    for r, (before, after) in enumerate(zip(responses, kept, strict=True)):
        name = names[min(r, len(names) - 1)]
        tally.response_cut[name] += len(after) < len(before)
        lost = specials.eos in before[len(after) :] and specials.eos not in after
        tally.eos_lost[name] += lost
    return example


def _over_limit(prompts: Sequence[Ids], responses: Sequence[Ids], settings: Data) -> str:
    """What is longer than its limit, in words; empty if nothing is."""
    if (most := max(map(len, prompts))) > settings.max_prompt:
        return f"prompt has {most} tokens; data.max_prompt is {settings.max_prompt}"
    longest = max(len(p) + len(ids) for p, ids in zip(prompts, responses, strict=True))
    if longest > settings.max_length:
        return f"prompt + response has {longest} tokens; data.max_length is {settings.max_length}"
    return ""


def _cut_prompt(prompt: Ids, limit: int, bos: int | None) -> Ids:
    """The last `limit` ids of a prompt, the first of them BOS if the prompt began with it."""
    if len(prompt) <= limit:
        return prompt
    kept = prompt[-limit:]
    return [prompt[0], *kept[1:]] if prompt[0] == bos else kept


def _array(ids: Ids) -> np.ndarray:
    return np.array(ids, np.int32)


def _with_borrowed(
    items: list[Example], max_length: int, seed: int, path: str, name: str, tally: _Tally
) -> list[Example]:
    """Give every example, as second response, the response to another prompt."""
    partners = _partners([item.prompt.tobytes() for item in items], seed)
    if partners is None:
        raise UserError(
            f"{path}: the mismatched responses of this objective come from other prompts, but "
            f"all {len(items)} examples have the same prompt; give data with several prompts"
        )
    out = []
    for item, partner in zip(items, partners, strict=True):
        response = items[partner].responses[0]
        kept = response[: max_length - len(item.prompt)]
        tally.response_cut[name] += len(kept) < len(response)
        out.append(item._replace(responses=(*item.responses, kept)))
    return out


def _partners(prompts: Sequence[bytes], seed: int) -> list[int] | None:
    """For each example the next one, around a random ring, whose prompt differs; None if none."""
    if len(set(prompts)) < 2:
        return None
    ring = np.random.default_rng(seed).permutation(len(prompts)).tolist()
    partner = list(range(len(prompts)))
    after = ring[0]
    # Backwards, so that an example with its neighbour's prompt takes its neighbour's partner; the
    # second round settles those whose search passes the ring's seam.
    for i in ring[::-1] * 2:
        partner[i] = after if prompts[after] != prompts[i] else partner[after]
        after = i
    return partner
