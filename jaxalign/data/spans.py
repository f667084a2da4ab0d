"""Which characters of a text are scored: those that a sampler would emit, stop token included."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from .template import ChatTemplate, Rendered, TemplateError, Turn, Turns, common_length
from .turns import is_scored

Opening = Literal["match", "rendered"]


class Draft(NamedTuple):
    """A text of which some spans are scored; it becomes one branch of an example."""

    text: str
    spans: tuple[tuple[int, int], ...]
    """Scored characters; each span but the last ends with a stop token."""
    end: str | None
    """The stop token to append; None: the text ends with one."""
    learned: tuple[str, ...] = ()
    """Scored texts that the chat template writes before answers."""


class Chat(NamedTuple):
    """A prompt of several turns, with what the template is given besides."""

    turns: Turns
    tools: Sequence[Any] | None = None
    variables: Mapping[str, Any] = {}


class _Drafted(NamedTuple):
    """A scored turn as the last one of its chat."""

    draft: Draft
    whole: str  # the chat, with what the template writes after the stop token
    before: int  # characters that a sampler is given


@dataclasses.dataclass(frozen=True)
class Drafter:
    """From turns to drafts.

    Each scored turn is rendered as the last one of a chat, and its scored characters run from
    the end of the generation prompt to the first stop token. Where all scored turns of a response
    are the same in one whole chat, this chat is the one draft; else each turn has its own.
    """

    template: ChatTemplate
    stops: tuple[str, ...]
    """Texts of the stop tokens."""
    end: str
    """The stop token of a turn that the template does not end."""
    opening: Opening | None = None
    """The text before an answer where the rendered chat does not begin with the generation prompt:
    `match`, the generation prompt; `rendered`, the rendered text. None: refused."""

    def prompt(self, chat: Chat) -> str:
        """The text that a sampler is given: the prompt, ready to be answered.

        Raises:
          TemplateError: the template refuses or fails on it.
        """
        *before, last = chat.turns or [{"role": ""}]
        if _is_begun(last):
            return self._begun(chat, before, last)
        return self._render(chat, chat.turns, opens=True).text if chat.turns else ""

    def drafts(self, prompt: Chat, response: Turns, *, only_last: bool = False) -> list[Draft]:
        """The drafts of a response.

        Args:
          prompt: the turns before the response; if an assistant's turn is the last of them and the
            response begins with one, the response continues it.
          response: its turns; assistant turns are scored.
          only_last: whether only the last of them is.

        Raises:
          TemplateError: the template refuses or fails on the turns, or which of its characters are
            the answer's cannot be told.
        """
        chat, first, begun = [*prompt.turns, *response], len(prompt.turns), None
        if first and response and _is_begun(chat[first - 1]) and chat[first]["role"] == "assistant":
            first -= 1
            begun, rest = chat[first : first + 2]
            content = (begun["content"] or "") + (rest["content"] or "")
            chat[first : first + 2] = [{**begun, **rest, "content": content}]
        places = [k for k in range(first, len(chat)) if is_scored(chat[k])]
        if not places:
            raise TemplateError("the response has no scored turn of the assistant")
        chat = chat[: places[-1] + 1]
        places = places[-1:] if only_last else places
        given = prompt._replace(turns=chat)
        turns = [self._turn(given, k, begun if k == first else None) for k in places]
        _check_context(chat, turns[-1].whole)
        return self._joined(given, turns) or [turn.draft for turn in turns]

    def shows_tools(self, prompt: Chat, response: Turns) -> bool:
        """Whether the text of a chat depends on its tools.

        Raises:
          TemplateError: the template refuses or fails on the chat.
        """
        turns = [*prompt.turns, *response]
        try:
            bare = self._render(prompt._replace(tools=None), turns)
        except TemplateError:  # it reads them, then
            return True
        return self._render(prompt, turns).text != bare.text

    def _turn(self, chat: Chat, k: int, begun: Turn | None) -> _Drafted:
        """Turn k as the last one of its chat; `begun` is the part of it that is context."""
        turn, whole = chat.turns[k], self._render(chat, chat.turns[: k + 1])
        before = self._before(chat, k, whole.text)
        if begun is None:
            opening, text = self._boundary(before, whole.text, turn)
            start = opening
        else:
            opening, text = common_length(before, whole.text), whole.text
            before = self._begun(chat, chat.turns[:k], begun)
            start = len(before)
            if not text.startswith(before):
                raise TemplateError(
                    "it writes the begun turn of the assistant in another way when its rest "
                    f"follows; {_difference(before, text)}; give the whole answer as the response"
                )
        at, stop = self._stop(text, start)
        if not text[start:stop].strip():
            raise TemplateError("it leaves out the whole answer")
        if (lost := _lost(turn, text[opening:stop])) is not None:
            raise TemplateError(self._hidden(turn, lost))
        spans = ((start, stop),)
        if self.template.marked:
            spans = _within(_marks(whole, text, opening), text, start, at, stop)
        end = None if at < stop else self._end_of(turn)
        learned = self._learned(turn, text[spans[0][0] : stop])
        return _Drafted(Draft(text[:stop], spans, end, learned), text, len(before))

    def _before(self, chat: Chat, k: int, whole: str) -> str:
        """What a sampler is given before turn k of a chat whose turns so far are `whole`."""
        if k > 0:
            return self._render(chat, chat.turns[:k], opens=True).text
        try:
            before = self._render(chat, [], opens=True).text
        except TemplateError:  # many templates fail on a chat without turns
            before = None
        if before is None or not whole.startswith(before):
            # What comes before every answer is what all answers share.
            two = [self._render(chat, [{"role": "assistant", "content": c}]).text for c in "01"]
            before = two[0][: common_length(*two)]
        return before

    def _boundary(self, before: str, whole: str, turn: Turn) -> tuple[int, str]:
        """(where the answer begins, the text), by the generation prompt and the rendered turn."""
        if whole.startswith(before):
            # After the answer of a tool some templates write their generation prompt unasked.
            header = (
                self.template.header if whole.startswith(self.template.header, len(before)) else ""
            )
            return len(before) + len(header), whole
        opened = self.template.opened
        shared = len(before) - len(opened)
        if not opened or not before.endswith(opened) or not whole.startswith(before[:shared]):
            raise TemplateError(
                "its generation prompt is not what it writes before an answer; "
                f"{_difference(before, whole)}; set data.chat_template_kwargs (as "
                "enable_thinking), or give another template in data.chat_template"
            )
        if self.opening is None:
            written = whole[max(shared - 30, 0) : shared + 30]
            raise TemplateError(
                f"its generation prompt ends {before[-40:]!r}, but it writes an answer without "
                f"{opened!r}: {written!r}; set "
                "data.generation_prompt to 'match' to train after the generation prompt, or to "
                "'rendered' to train on the answer as it is written"
            )
        if self.opening == "rendered":
            return shared, whole
        body = whole[shared:]
        if _lost(turn, body) is not None:
            said = turn["content"] or ""
            said = said.removeprefix(opened) if said.startswith(opened) else said
            body = said.removeprefix(opened.strip()).lstrip("\n") + self.template.tail
        return len(before), before + body

    def _stop(self, text: str, start: int) -> tuple[int, int]:
        """Where the stop token of an answer begins and ends; twice the end of the text if none."""
        found = [(text.find(stop, start), len(stop)) for stop in self.stops]
        ends = [(at, size) for at, size in found if at >= 0]
        if ends:
            at, size = min(ends, key=lambda end: (end[0], -end[1]))
            return at, at + size
        tail = self.template.tail
        blank = tail[len(tail.rstrip()) :]
        end = len(text.removesuffix(blank) if blank else text)
        return end, end

    def _learned(self, turn: Turn, scored: str) -> tuple[str, ...]:
        """The scored text that the template writes before an answer, at most one.

        Before a tool call or reasoning, only what it writes before every answer: its marks of calls
        and reasoning are what a sampler emits.
        """
        between = self.template.between.strip()
        if between and scored.lstrip().startswith(between):
            return (between,)
        if turn.get("tool_calls") or turn.get("reasoning_content"):
            return ()
        lead = scored[: max(scored.find((turn["content"] or "").strip()), 0)].strip()
        return (lead,) if lead else ()

    def _end_of(self, turn: Turn) -> str:
        """The stop token of a turn that ends without: what a next turn begins with, or the end."""
        following = self.template.following(call=bool(turn.get("tool_calls"))).lstrip()
        return next((stop for stop in self.stops if following.startswith(stop)), self.end)

    def _hidden(self, turn: Turn, lost: str) -> str:
        """Why an answer is not all there."""
        if typed := next((stop for stop in self.stops if stop in "".join(_said(turn))), None):
            return f"the answer holds the stop token {typed!r}, and goes on after it"
        remedy = ", or set data.generation_prompt to 'match'" if self.template.opened else ""
        return (
            f"it leaves out {lost.strip()[:40]!r} of the answer; give a template that keeps it in "
            f"data.chat_template{remedy}"
        )

    def _joined(self, chat: Chat, turns: list[_Drafted]) -> list[Draft] | None:
        """The one draft of several turns; None if they are not the same in the whole chat."""
        whole, spans = turns[-1].whole, []
        for turn in turns:
            text, (*inner, (start, stop)), end, _ = turn.draft
            if not whole.startswith(text) or not whole.startswith(turn.whole[: turn.before]):
                return None
            if end and turn is not turns[-1]:
                if not whole.startswith(end, stop):
                    return None
                stop += len(end)
            spans += [*inner, (start, stop)]
        last = turns[-1].draft
        learned = tuple(text for turn in turns for text in turn.draft.learned)
        return [Draft(last.text, tuple(spans), last.end, learned)]

    def _begun(self, chat: Chat, before: Turns, turn: Turn) -> str:
        """The text of a chat whose last turn, an assistant's, is to be continued."""
        more = {**turn, "content": (turn["content"] or "") + _MORE}
        text = self._render(chat, [*before, more]).text
        if _MORE not in text:
            raise TemplateError("it leaves out the begun turn of the assistant")
        return text[: text.index(_MORE)]

    def _render(self, chat: Chat, turns: Turns, *, opens: bool = False) -> Rendered:
        return self.template.render(turns, tools=chat.tools, variables=chat.variables, opens=opens)


_MORE = "\u2063and so on\u2063"
"""The place of the rest of a begun turn."""


def _is_begun(turn: Turn) -> bool:
    """Whether a turn at the end of a prompt is an answer to be continued."""
    return turn["role"] == "assistant" and not turn.get("tool_calls")


def _difference(prompt: str, answer: str) -> str:
    """Where two texts that should begin equally differ first."""
    at = common_length(prompt, answer)
    return (
        f"at character {at} the prompt has {prompt[at : at + 30]!r}, the answer "
        f"{answer[at : at + 30]!r}"
    )


def _marks(whole: Rendered, text: str, opening: int) -> list[tuple[int, int]]:
    """The marks of a rendered chat in a text that equals it from the opening of the answer on."""
    if not whole.text.endswith(text[opening:]):
        raise TemplateError(
            "its {% generation %} blocks mark another text than data.generation_prompt: match "
            "makes; set it to 'rendered', or give a template without them in data.chat_template"
        )
    moved = len(text) - len(whole.text)
    return [(a + moved, b + moved) for a, b in whole.marks]


def _within(
    marks: Sequence[tuple[int, int]], text: str, start: int, at: int, stop: int
) -> tuple[tuple[int, int], ...]:
    """The marked parts of an answer from `start`, and its stop token from `at` to `stop`."""
    parts = [(max(a, start), min(b, stop)) for a, b in marks if min(b, stop) > max(a, start)]
    if not parts:
        raise TemplateError("its {% generation %} blocks mark nothing of the answer")
    joined = [parts[0]]
    for a, b in [*parts[1:], (at, stop)]:
        if text[joined[-1][1] : a].strip() if a == at else a > joined[-1][1]:
            joined.append((a, b))
        else:
            joined[-1] = (joined[-1][0], b)
    return tuple(joined)


def _check_context(chat: Turns, whole: str) -> None:
    """Refuse a text that leaves out a turn."""
    squeezed = None
    for role, said in ((turn["role"], said) for turn in chat for said in _kept(turn)):
        if said.strip() in whole:
            continue
        squeezed = squeezed or _squeezed(whole)
        as_json = (json.dumps(said, ensure_ascii=ascii)[1:-1] for ascii in (False, True))
        if not any(_squeezed(form) in squeezed for form in (said, *as_json)):
            raise TemplateError(
                f"it leaves out {said.strip()[:40]!r}, a turn of the {role}; give a "
                "template that keeps it in data.chat_template, rename the role in data.roles, or "
                "drop the turn"
            )


def _kept(turn: Turn) -> list[str]:
    """What the turns after it need of a turn: its content, of an answer without the reasoning.

    Of an answer with tool calls it is the names of these; the content is then like reasoning.
    """
    content = turn["content"] or ""
    if turn["role"] != "assistant":
        return [content]
    names = [call["function"]["name"] for call in turn.get("tool_calls") or ()]
    return names or [content.rpartition("</think>")[2]]


def _lost(turn: Turn, text: str) -> str | None:
    """A part of what a turn says that a text does not hold; None if it holds all of them.

    Equal parts, as two calls of one tool, must be there as often as the turn has them.
    """
    rest = _squeezed(text)
    for part in sorted(_said(turn), key=len, reverse=True):
        before, found, after = rest.partition(_squeezed(part)) if part.strip() else ("", " ", rest)
        if not found:
            return part
        rest = f"{before}\n{after}"
    return None


def _said(turn: Turn) -> list[str]:
    """What a turn says: its content without the tags of reasoning, its reasoning, its calls."""
    said = re.split("</?think>", turn["content"] or "")
    reasoning = turn.get("reasoning_content") or ""
    if _squeezed(reasoning) not in map(_squeezed, said[:-1]):
        said.append(reasoning)
    for call in turn.get("tool_calls") or ():
        function = call["function"]
        said += [function["name"], *_plain_values(function["arguments"])]
    return said


def _plain_values(value: object) -> Iterator[str]:
    """The numbers and texts in arguments that every notation writes in the same way."""
    if isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _plain_values(inner)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield str(value)
    elif isinstance(value, str) and _PLAIN.fullmatch(value):
        yield value


_PLAIN = re.compile(r"[\w ]+", re.ASCII)


def _squeezed(text: str) -> str:
    return "".join(text.split())
