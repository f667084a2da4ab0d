"""A tokenizer's chat template: what it renders, and what it writes around an answer."""

from __future__ import annotations

import contextlib
import datetime
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from .sandbox import Environment

Turn = Mapping[str, Any]
"""A message: `role`, `content` and, where it has them, `tool_calls`, `reasoning_content`, ..."""
Turns = Sequence[Turn]

QUESTION, ANSWER = "jaxalign asks", "jaxalign answers"
"""Contents of the chats by which a template is tried."""


NONE = "None"


class TemplateError(Exception):
    """A template failed; says how, in one line."""


class Rendered(NamedTuple):
    """What a template makes of a chat."""

    text: str
    marks: tuple[tuple[int, int], ...]
    """Where the text of `{% generation %}` blocks begins and ends, in characters."""


class ChatTemplate:
    """A chat template, compiled.

    Attributes:
      source: the template.
    """

    def __init__(
        self,
        source: str,
        variables: Mapping[str, Any] | None = None,
        now: datetime.datetime | None = None,
    ):
        """Compile a template.

        Args:
          source: the template.
          variables: what it may read besides the chat: special tokens, settings.
          now: the time that its clock shows; None: the time of this call.

        Raises:
          TemplateError: it is no template.
        """
        self.source, self._variables = source, dict(variables or {})
        self._environment = Environment(now or datetime.datetime.now())
        try:
            self._template = self._environment.from_string(source)
        except Exception as error:  # the template is not ours: whatever it raises is its error
            raise TemplateError(_one_line(error)) from None

    def render(
        self,
        chat: Turns,
        *,
        tools: Sequence[Any] | None = None,
        variables: Mapping[str, Any] | None = None,
        opens: bool = False,
    ) -> Rendered:
        """The text of a chat.

        Args:
          chat: the turns.
          tools: schemas of functions that the model may call.
          variables: what the template may read besides.
          opens: whether to end with what opens an answer, the generation prompt.

        Raises:
          TemplateError: the template refuses the chat, fails on it, runs for too long or makes too
            large a text.
        """
        given = ({} if tools is None else {"tools": tools}) | dict(variables or {})
        failed: TemplateError | None = None
        pythonic: Rendered | None = None
        for form in _forms(_in_parts(chat) if self.parts else chat):
            try:
                found = self._without_none(form, opens=opens, given=given)
                if not _holds_python(form, found.text):
                    return found
                pythonic = pythonic or found
            except TemplateError as error:
                failed = failed or error
        if pythonic is not None:
            return pythonic
        assert failed is not None
        raise failed

    def _without_none(self, chat: Turns, *, opens: bool, given: Mapping[str, Any]) -> Rendered:
        """The text of a chat without the "None" that some templates write for no content."""
        found = self._render(chat, opens=opens, given=given)
        if NONE in found.text and any(turn.get("content", "") is None for turn in chat):
            with contextlib.suppress(TemplateError):
                filled = self._render(_filled(chat), opens=opens, given=given)
                if filled.text.count(NONE) < found.text.count(NONE):
                    return filled
        return found

    @cached_property
    def parts(self) -> bool:
        """Whether it shows content only as a list of parts, as templates of vision models do."""
        chats = ([_QUESTION, _ANSWER], [_INSTRUCTION, _QUESTION, _ANSWER])
        for parts in (False, True):
            for chat in chats:
                with contextlib.suppress(TemplateError):
                    if ANSWER in self._render(_in_parts(chat) if parts else chat, opens=False).text:
                        return parts
        return False

    @cached_property
    def marked(self) -> bool:
        """Whether it marks the text of the assistant by `{% generation %}`."""
        return bool(re.search(r"\{%-?\s*generation\s*-?%\}", self.source))

    @cached_property
    def opened(self) -> str:
        """The end of the generation prompt that an answer is not rendered with, as `<think>`."""
        shared = common_length(self._asked, self._answered)
        return self._asked[shared:] if self._answered else ""

    @cached_property
    def header(self) -> str:
        """The generation prompt: what opens an answer after a question."""
        question = self._tried([_QUESTION])
        return self._asked[len(question) :] if self._asked.startswith(question) else ""

    @cached_property
    def between(self) -> str:
        """What it writes between the generation prompt and an answer."""
        start = common_length(self._asked, self._answered)
        return self._answered[start : self._answered.find(ANSWER)] if self._answered else ""

    @cached_property
    def tail(self) -> str:
        """What it writes after an answer that is the last turn."""
        return self._answered.rpartition(ANSWER)[2]

    def following(self, call: bool) -> str:
        """What it writes after an answer when a user's turn follows, or a tool's after a call."""
        chat = [_QUESTION, _CALL, _RESULT] if call else [_QUESTION, _ANSWER, _QUESTION]
        before, whole = self._tried(chat[:2]), self._tried(chat)
        return whole[len(before) :] if whole.startswith(before) else ""

    @cached_property
    def _asked(self) -> str:
        return self._tried([_QUESTION], opens=True)

    @cached_property
    def _answered(self) -> str:
        return self._tried([_QUESTION, _ANSWER])

    def _tried(self, chat: Turns, *, opens: bool = False) -> str:
        """The text of a chat, with an instruction if it needs one; empty if it fails."""
        for form in (chat, [_INSTRUCTION, *chat]):
            with contextlib.suppress(TemplateError):
                return self.render(form, opens=opens).text
        return ""

    def _render(
        self, chat: Turns, *, opens: bool, given: Mapping[str, Any] | None = None
    ) -> Rendered:
        values = {"tools": None, "documents": None, **self._variables, **(given or {})}
        own = {"messages": list(chat), "add_generation_prompt": opens}
        if taken := sorted(own.keys() & values):
            raise TemplateError(f"chat_template_kwargs gives {taken[0]!r}; leave it out")
        try:
            self._environment.begin()
            text = self._template.render(values | own)
        except Exception as error:  # the template is not ours: whatever it raises is its error
            roles = ", ".join(str(turn.get("role")) for turn in chat[:8])
            raise TemplateError(f"{_one_line(error)}; got roles {roles or 'none'}") from None
        try:
            text.encode()
        except UnicodeEncodeError as error:
            shown = ascii(text[max(error.start - 20, 0) : error.end])
            raise TemplateError(
                f"its text holds half a surrogate pair, {shown}; repair the turns, tools or "
                "chat_template_kwargs of the row"
            ) from None
        return _unmarked(text, self._environment.marks)


_QUESTION, _ANSWER = {"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}
_INSTRUCTION = {"role": "system", "content": "jaxalign instructs"}
_CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "type": "function",
            "id": "call00000",
            "function": {"name": "look", "arguments": {"at": 1}},
        }
    ],
}
_RESULT = {"role": "tool", "name": "look", "tool_call_id": "call00000", "content": "2"}


def _in_parts(chat: Turns) -> list[Turn]:
    """The turns, with every content that is a text as a list of one part."""
    return [
        {**turn, "content": [{"type": "text", "text": turn["content"]}]}
        if isinstance(turn.get("content"), str)
        else turn
        for turn in chat
    ]


def _forms(chat: Turns) -> Iterator[Turns]:
    """A chat with its tool calls in the forms that templates read, the documented one first.

    Some add the arguments to a text, which must then be JSON text, and some add the content, which
    must not be None.
    """
    yield chat
    if any(turn.get("tool_calls") for turn in chat):
        yield _filled(chat)
        yield _with_text_arguments(chat)
        yield _with_text_arguments(_filled(chat))


def _filled(chat: Turns) -> list[Turn]:
    """The turns, with an empty text as the content of turns that have none."""
    return [{**turn, "content": turn["content"] or ""} for turn in chat]


def _with_text_arguments(chat: Turns) -> list[Turn]:
    def call(given: Mapping[str, Any]) -> dict[str, Any]:
        function = given["function"]
        text = json.dumps(function["arguments"], ensure_ascii=False)
        return {**given, "function": {**function, "arguments": text}}

    return [
        {**turn, "tool_calls": [call(x) for x in turn["tool_calls"]]}
        if turn.get("tool_calls")
        else turn
        for turn in chat
    ]


def _holds_python(chat: Turns, text: str) -> bool:
    """Whether a text holds the arguments of a tool call as Python, which are JSON elsewhere."""
    calls = [call for turn in chat for call in turn.get("tool_calls") or ()]
    arguments = [call["function"]["arguments"] for call in calls]
    return any(isinstance(found, Mapping) and found and str(found) in text for found in arguments)


def common_length(a: str, b: str) -> int:
    """How many characters two texts have in common from the start."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low


def _unmarked(text: str, marks: tuple[str, str]) -> Rendered:
    """The text without its marks, and where they were."""
    pieces = re.split(f"({'|'.join(marks)})", text)
    plain, at = [], 0
    found: list[tuple[int, int]] = []
    opened: int | None = None
    for piece in pieces:
        if piece == marks[0] and opened is None:
            opened = at
        elif piece == marks[1] and opened is not None:
            found.append((opened, at))
            opened = None
        elif piece in marks:
            raise TemplateError("{% generation %} blocks are nested")
        else:
            plain.append(piece)
            at += len(piece)
    if opened is not None:
        raise TemplateError("a {% generation %} block is cut off")
    return Rendered("".join(plain), tuple(found))


def _one_line(error: Exception) -> str:
    """What went wrong, on one line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, RecursionError):
        text = "it calls itself without end, or is nested too deeply"
    return text if len(text) <= 200 else text[:199] + "…"
