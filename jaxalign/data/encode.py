"""Records to token ids, each response with its scored spans."""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import UserError
from ..settings import Data
from ..shown import listed, shown
from .fields import Field
from .records import Record
from .spans import Chat, Draft, Drafter, Opening
from .tally import Reasons
from .template import ChatTemplate, TemplateError
from .turns import Turn
from .words import Words, check_pieces, cuts_at_edges, plain_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = list[int]
RENDERED = "rendered by the chat template"
"""What is noted of a row that is a chat."""


class Encoded(NamedTuple):
    """A sequence of tokens: prompt and response, or what leads to a turn and that turn."""

    ids: Ids
    spans: tuple[tuple[int, int], ...]
    """Scored tokens."""
    response: int
    """The response that they belong to."""


class Encoder:
    """Texts and turns to token ids, by a tokenizer and its chat template.

    Attributes:
      tokenizer: the tokenizer.
      front: ids that a prompt of text begins with, and that a cut keeps: what the tokenizer puts in
        front of a text, else BOS; empty if there is neither.
      stops: {text: id} of the tokens at which generation stops.
      template: a chat template instead of the tokenizer's; None: there is none.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        settings: Data | None = None,
        *,
        stops: Collection[int] = (),
        template: str | None = None,
        now: datetime.datetime | None = None,
    ):
        """Take what is needed from the tokenizer; the chat template is compiled at its first use.

        Args:
          tokenizer: a Hugging Face tokenizer; a pad token is not needed.
          settings: `turns`, `generation_prompt` and `chat_template_kwargs` are read.
          stops: ids at which generation stops, besides the tokenizer's EOS.
          template: a chat template instead of the tokenizer's.
          now: the time that the clock of chat templates shows; None: the time of this call.
        """
        self.tokenizer, self.template, self._now = tokenizer, template, now
        self._variables = dict(settings.chat_template_kwargs) if settings else {}
        self._opening: Opening | None = settings.generation_prompt if settings else None
        self._only_last = settings is not None and settings.turns == "last"
        self._drafters: dict[str, Drafter] = {}
        added = tokenizer.added_tokens_decoder
        self._added = {str(token): i for i, token in added.items()}
        self._special = {str(token): i for i, token in added.items() if token.special}
        bos, eos = (
            token if isinstance(token, int) else None
            for token in (tokenizer.bos_token_id, tokenizer.eos_token_id)
        )
        self._prefix = _in_front(tokenizer)
        self.front: Ids = self._prefix or ([] if bos is None else [bos])
        self._eos = None if eos is None else str(tokenizer.convert_ids_to_tokens(eos))
        ids = {*stops, *([] if eos is None else [eos])}
        self.stops = {str(tokenizer.convert_ids_to_tokens(i) or f"id {i}"): i for i in sorted(ids)}

    def __getstate__(self) -> dict[str, Any]:
        """All but the compiled chat templates, which are compiled again where they are needed."""
        return {k: v for k, v in self.__dict__.items() if k != "_words"} | {"_drafters": {}}

    @property
    def _stop(self) -> re.Pattern[str]:
        """A stop token in a text."""
        return _any_of(tuple(stop for stop in self.stops if stop in self._added))

    @property
    def _control(self) -> re.Pattern[str]:
        """A special token in a text."""
        return _any_of(tuple(self._special))

    @property
    def has_template(self) -> bool:
        """Whether there is a chat template, the tokenizer's or another."""
        return bool(self.templates)

    def all_stops(self) -> tuple[int, ...]:
        """The ids at which generation stops, by which chat templates end a turn among them."""
        for tools in (None, [{}]):
            with contextlib.suppress(TemplateError):
                self.drafter(tools)
        return tuple(sorted(self.stops.values()))

    @property
    def templates(self) -> Any:
        """The chat template, or chat templates by name; None if there is none."""
        return self.template or self.tokenizer.chat_template

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that the token ids and spans of a record depend on."""
        backend: Any = self.tokenizer
        clock = (self._now or datetime.datetime.now()).isoformat()
        about = {
            "tokenizer": backend.backend_tokenizer.to_str(),
            "special": {k: str(v) for k, v in self.tokenizer.special_tokens_map.items()},
            "templates": self.templates,
            "variables": self._variables,
            "generation_prompt": self._opening,
            "only_last": self._only_last,
            "stops": self.all_stops(),
            "now": clock if "strftime_now" in str(self.templates) else None,
        }
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def drafter(self, tools: object = None) -> Drafter:
        """The drafter of chats; of templates with names, the one for chats with or without tools.

        Raises:
          TemplateError: there is no chat template, or it is none.
        """
        found, name = self.template or self.tokenizer.chat_template, "default"
        if isinstance(found, Mapping):
            name = "tool_use" if tools and "tool_use" in found else "default"
            if name not in found:
                raise TemplateError(
                    f"the tokenizer has chat templates {listed(found, quote='')} and no 'default'; "
                    "give one in data.chat_template"
                )
            found = found[name]
        if not found:
            raise TemplateError(
                "got messages, but the tokenizer has none; give text, a template in "
                "data.chat_template, or a model whose tokenizer has one"
            )
        if not isinstance(found, str):
            raise TemplateError(f"the chat template is {shown(found)}; wanted text")
        if name not in self._drafters:
            self._drafters[name] = self._make_drafter(found)
        return self._drafters[name]

    def _make_drafter(self, source: str) -> Drafter:
        names = {k: str(v) for k, v in self.tokenizer.special_tokens_map.items()}
        template = ChatTemplate(source, names | self._variables, self._now)
        if not self._stop.search(template.tail):
            others = _any_of(tuple(token for token in self._added if token.strip()))
            taught = self._control.search(template.tail) or others.search(template.tail)
            if taught:
                self.stops[taught[0]] = self._added[taught[0]]
        end = self._eos or next(iter(self.stops), None)
        if end is None:
            raise TemplateError(
                "it ends no turn with a special token and the tokenizer has no EOS, so no model "
                "could learn to stop; add an eos_token to tokenizer_config.json"
            )
        stops = tuple(stop for stop in self.stops if stop in self._added)
        return Drafter(template, stops, end, self._opening)

    def prompts(self, prompts: Iterable[tuple[str, str | Chat]]) -> list[np.ndarray]:
        """Prompts to be answered, each [length] int32, with the special tokens of training.

        Args:
          prompts: texts and chats, each after its place, for messages.

        Raises:
          UserError: the chat template is missing or refuses the messages.
        """
        encoded = []
        for where, prompt in prompts:
            if isinstance(prompt, str):
                check_pieces([prompt], where, by_words=bool(self._words))
                ids = self._with_bos(*self._ids([prompt]))
            else:
                with _named(where):
                    (ids,) = self._ids([self.drafter(prompt.tools).prompt(prompt)])
            encoded.append(np.array(ids, np.int32))
        return encoded

    def text(self, ids: np.ndarray) -> str:
        """The text of an answer, [length] int32, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def encode(
        self, records: Sequence[Record], noted: Reasons
    ) -> Iterator[tuple[Record, list[Encoded]]]:
        """Records, each with its sequences, in the order of their responses.

        Args:
          records: read and checked.
          noted: counts of what was found in them; increased.

        Raises:
          UserError: which tokens a sampler would emit cannot be told; names the record.
        """
        self.all_stops()  # a text, too, may end with a token by which the chat template ends turns
        drafted = [self._drafts(record, noted) for record in records]
        for record, drafts in zip(records, drafted, strict=True):
            check_pieces([d.text for _, d in drafts], record.where, by_words=bool(self._words))
        texts = {text: None for drafts in drafted for _, d in drafts for text in _texts(d)}
        ids = dict(zip(texts, self._ids([*texts]), strict=True))
        for record, drafts in zip(records, drafted, strict=True):
            found = [(r, d, [ids[text] for text in _texts(d)]) for r, d in drafts]
            yield record, self._sequences(record, found)

    def _drafts(self, record: Record, noted: Reasons) -> list[tuple[int, Draft]]:
        """The drafts of a record, each with its response."""
        prompts = record.prompts or (record.prompt,) * len(record.responses)
        out = []
        for r, (prompt, response) in enumerate(zip(prompts, record.responses, strict=True)):
            if isinstance(prompt, str):
                assert isinstance(response, str)
                out.append((r, self._text_draft(record, r, prompt, response, noted)))
            else:
                assert isinstance(response, list)
                out += [(r, draft) for draft in self._chat_drafts(record, prompt, response, noted)]
        said = (record.prompt, *record.responses)
        if not isinstance(record.prompt, str):
            noted.add(RENDERED, record.where)
        if record.tools and not self._shows_tools(record):
            noted.add("tools that are not in the text", record.where)
        if any(self._typed(x) for x in said):
            noted.add("control tokens in the text", record.where)
        return out

    def _chat_drafts(
        self, record: Record, prompt: list[Turn], response: list[Turn], noted: Reasons
    ) -> list[Draft]:
        with _named(record.where):
            drafter = self.drafter(record.tools)
            chat = Chat(prompt, record.tools, record.variables)
            drafts = drafter.drafts(chat, response, only_last=self._only_last)
        between = drafter.template.between.strip()
        for text in dict.fromkeys(text for draft in drafts for text in draft.learned):
            what = f"{between!r}, which" if text == between else "text that"
            noted.add(f"learns {what} the template writes before an answer", record.where)
        return drafts

    def _shows_tools(self, record: Record) -> bool:
        """Whether the text of a record has its tools."""
        prompt, response = record.prompt, record.responses[0]
        if isinstance(prompt, str) or isinstance(response, str):
            return False
        with _named(record.where):
            chat = Chat(prompt, record.tools, record.variables)
            return self.drafter(record.tools).shows_tools(chat, response)

    def _text_draft(
        self, record: Record, r: int, prompt: str, response: str, noted: Reasons
    ) -> Draft:
        """A text and its end; a text that ends with a stop token and white space ends there."""
        name = record.names[min(r, len(record.names) - 1)]
        stops = list(self._stop.finditer(response))
        end = None
        if stops and not response[stops[-1].end() :].strip():
            response = response[: stops.pop().end()]
        else:
            end = self._eos
            if end is None:
                raise UserError(
                    f"{record.where}: the tokenizer has no EOS token, so no model could learn to "
                    "stop; add an eos_token to tokenizer_config.json"
                )
        if stops and name != "text":
            raise UserError(
                f"{record.where}: '{name}' goes on after the stop token "
                f"{stops[0][0]!r}, where a model would have stopped; end it there, or give the "
                "turns of a chat as messages"
            )
        if stops:
            noted.add("text goes on after a stop token", record.where)
        whole = prompt + response
        return Draft(whole, ((len(prompt), len(whole)),), end)

    def _typed(self, found: Field) -> bool:
        """Whether somebody typed a control token; a text may begin with BOS and end with a stop."""
        if isinstance(found, str):
            front = "".join(map(str, self.tokenizer.convert_ids_to_tokens(self.front)))
            inside = found.removeprefix(front).rstrip()
            end = next((stop for stop in self.stops if inside.endswith(stop)), "")
            return bool(self._control.search(inside.removesuffix(end)))
        return any(turn["content"] and self._control.search(turn["content"]) for turn in found)

    def _sequences(
        self, record: Record, found: list[tuple[int, Draft, list[Ids]]]
    ) -> list[Encoded]:
        """The token spans of drafts, by what the ids of a text and of its beginnings share."""
        is_text = isinstance(record.prompt, str)
        wholes, starts = [], {}
        for _, draft, (whole, *before) in found:
            if is_text:
                whole, *before = (self._with_bos(ids) for ids in (whole, *before))
            edges = [common_prefix([whole, ids]) for ids in before]
            for k in range(1, len(edges), 2):
                if edges[k] < len(before[k]):  # a token spans the end of a marked part
                    edges[k] = self._tokens_up_to(draft.text, draft.spans[k // 2][1])
            wholes.append((whole, edges))
            first = draft.text[: draft.spans[0][0]]
            starts[first] = min(edges[0], starts.get(first, edges[0]))
        out = []
        for (r, draft, _), (whole, edges) in zip(found, wholes, strict=True):
            start = starts[draft.text[: draft.spans[0][0]]]
            end = [self.stops[draft.end]] if draft.end else []
            bounds = [start, *edges[1:], len(whole) + len(end)]
            spans = tuple(zip(bounds[::2], bounds[1::2], strict=True))
            out.append(Encoded(whole + end, spans, r))
            if "text" not in record.names:
                self._check_stops(record.where, out[-1])
        return out

    def _check_stops(self, where: str, found: Encoded) -> None:
        """Refuse scored tokens after which a model would have stopped before their end."""
        stops = {i: stop for stop, i in self.stops.items()}
        inside = [i for a, b in found.spans for i in found.ids[a : b - 1] if i in stops]
        if inside:
            raise UserError(
                f"{where}: the answer goes on after the token {stops[inside[0]]!r}, id "
                f"{inside[0]}, at which generation stops; end it there, or take the id out of "
                "eos_token_id in generation_config.json and config.json"
            )

    def _tokens_up_to(self, text: str, end: int) -> int:
        """How many tokens of a text begin before a character."""
        found: Any = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return sum(start < end for start, _ in found["offset_mapping"])

    def _with_bos(self, ids: Ids) -> Ids:
        return ids if ids[: len(self._prefix)] == self._prefix else self._prefix + ids

    @functools.cached_property
    def _words(self) -> Words | None:
        """What tokenizes texts by their words; None for tokenizers that are no BPE by words."""
        return Words(self.tokenizer) if cuts_at_edges(self.tokenizer) else None

    def _ids(self, texts: list[str]) -> list[Ids]:
        return self._words.ids(texts) if self._words else plain_ids(self.tokenizer, texts)


@contextlib.contextmanager
def _named(where: str) -> Iterator[None]:
    """Name the place of the record in an error of its chat template."""
    try:
        yield
    except TemplateError as error:
        raise UserError(f"{where}: chat template: {error}") from None


def _in_front(tokenizer: PreTrainedTokenizerBase) -> Ids:
    """The ids that the tokenizer puts in front of a text by itself: BOS, others or none."""
    encoded: Any = tokenizer("a")
    (plain,) = plain_ids(tokenizer, ["a"])
    ids = encoded["input_ids"]
    return next((ids[:i] for i in range(len(ids)) if ids[i : i + len(plain)] == plain), [])


def _texts(draft: Draft) -> list[str]:
    """The text of a draft, and its beginnings up to each edge of a span but the last."""
    edges = [edge for span in draft.spans for edge in span][:-1]
    return [draft.text, *(draft.text[:edge] for edge in edges)]


@functools.lru_cache
def _any_of(texts: tuple[str, ...]) -> re.Pattern[str]:
    """Any of some texts, the longest that fits; no text if there are none."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")


def common_prefix(sequences: Iterable[Sequence[int]]) -> int:
    """How many ids all sequences have in common from the start."""
    sequences = list(sequences)
    shortest = min(map(len, sequences))
    starts = [ids[:shortest] for ids in sequences]
    if all(start == starts[0] for start in starts):
        return shortest
    stacked = np.array(starts)
    return int((stacked != stacked[0]).any(0).argmax())
