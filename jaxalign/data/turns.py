"""The turns of a chat as files hold them: messages, ShareGPT, tool calls, reasoning."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ..documents import from_json
from ..errors import UserError
from ..shown import listed, shown, shown_json

Turn = dict[str, Any]
"""A message: `role`, `content` (text or None) and, where it has them, `tool_calls`,
`reasoning_content`, `name`, `tool_call_id` and other keys that a chat template may read."""

ROLES = ("system", "developer", "user", "assistant", "tool")
"""The roles of turns; roles in files are renamed to them."""
RENAMED = {
    "human": "user",
    "gpt": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function": "tool",
    "ipython": "tool",
}
"""Other names of roles, of ShareGPT and of older message formats."""
SCORED = ("weight", "train")
"""Keys of an answer that say whether it is scored: 1 or 0, true or false."""
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys under which templates look for the reasoning before an answer."""


def is_turns(value: Any) -> bool:
    """Whether a value is a message or a list of messages, good or bad."""
    if isinstance(value, Mapping):
        return "role" in value or "from" in value
    return isinstance(value, list) and all(isinstance(x, Mapping) for x in value)


def read_turns(value: Any, roles: Mapping[str, str], where: str) -> list[Turn]:
    """The turns of a message or a list of messages.

    Args:
      value: `{role, content}` or ShareGPT's `{from, value}`, or a list of them.
      roles: names of roles in the file, by the role that each means.
      where: the row and the column, for messages.

    Raises:
      UserError: a turn has no role, an unknown role or content of another kind.
    """
    found = [value] if isinstance(value, Mapping) else value
    return [_turn(raw, roles, f"{where}[{i}]") for i, raw in enumerate(found)]


def content_of(turns: list[Turn]) -> str:
    """The contents of some turns, one after another."""
    return "\n\n".join(turn["content"] for turn in turns if turn["content"])


def says_something(turn: Turn, stops: Collection[str] = ()) -> bool:
    """Whether a turn has content that is not only a stop token, a tool call or reasoning."""
    texts = (turn["content"] or "", *(turn.get(key, "") for key in REASONING))
    said = any(text.strip() not in ("", *stops) for text in texts)
    return said or bool(turn.get("tool_calls"))


def is_scored(turn: Mapping[str, Any]) -> bool:
    """Whether a turn is an answer that is not left out by its `weight` or `train`."""
    return turn["role"] == "assistant" and all(turn.get(key, 1) for key in SCORED)


def _turn(raw: Mapping[str, Any], roles: Mapping[str, str], where: str) -> Turn:
    kept = {k: v for k, v in raw.items() if v is not None}
    named = "from" if "from" in kept and "role" not in kept else "role"
    said = kept.get(named)
    if not isinstance(said, str):
        raise UserError(
            f'{where}: is no message; got {shown_json(raw)}; wanted {{"role": ..., "content": ...}}'
        )
    role = roles.get(said, RENAMED.get(said, said))
    if role not in ROLES:
        raise UserError(
            f"{where}: unknown role {shown(said)}; wanted one of {', '.join(ROLES)}; "
            f"say which it is, as in data.roles: {{{said}: assistant}}"
        )
    content = _content(kept.get("value" if named == "from" else "content"), where)
    others = {k: v for k, v in kept.items() if k not in (named, "value", "content", *REASONING)}
    turn: Turn = {"role": role, "content": content, **others}
    reasoning = _reasoning(kept, where)
    if reasoning is not None:
        turn |= dict.fromkeys(REASONING, reasoning)
    if said == "function_call" and content is not None:
        turn |= {"content": None, "tool_calls": [_json(content, where)]}
    if "function_call" in turn:
        turn["tool_calls"] = [turn.pop("function_call")]
    if "tool_calls" in turn:
        turn["tool_calls"] = _calls(turn["tool_calls"], where)
    if content is None and not turn.get("tool_calls") and reasoning is None:
        raise UserError(f"{where}: has neither content nor tool calls; got {shown_json(raw)}")
    if role == "assistant":
        _check_marks(turn, where)
    return turn


def _check_marks(turn: Turn, where: str) -> None:
    for key in SCORED:
        if turn.get(key, 1) not in (0, 1):
            raise UserError(
                f"{where}: its '{key}' is {shown_json(turn[key])}; wanted 1 or true for a scored "
                "answer, 0 or false for context; a factor of the loss is a column of the row"
            )


def _reasoning(raw: Mapping[str, Any], where: str) -> str | None:
    """The reasoning of a message, which may be under several keys if it is the same."""
    found = [_text(raw[key], f"{where}: its reasoning") for key in REASONING if key in raw]
    texts = {text for text in found if text.strip()}
    if len(texts) > 1:
        raise UserError(f"{where}: has different reasoning under two keys; keep one of them")
    return next(iter(texts), found[0] if found else None)


def _content(value: Any, where: str) -> str | None:
    """The text of a message; a list of parts that are texts is joined."""
    if isinstance(value, list):
        kinds = {str(part.get("type")) if isinstance(part, Mapping) else "?" for part in value}
        if kinds - {"text"}:
            raise UserError(
                f"{where}: content has parts of type {listed(sorted(kinds - {'text'}), quote='')}; "
                "only text can be trained on; drop the row or these parts"
            )
        value = "".join(_text(part.get("text"), f"{where}: the text of a part") for part in value)
    return value if value is None else _text(value, f"{where}: its content")


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{what} is {shown_json(value)}; wanted a text")
    return encodable(value, what)


def encodable(text: str, what: str) -> str:
    """The text.

    Raises:
      UserError: it cannot be encoded as UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{what} holds half a surrogate pair at character {error.start}; repair it"
        ) from None
    return text


def _calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Tool calls in the form `{type, id, function: {name, arguments}}`, arguments a mapping."""
    calls = _json(value, where) if isinstance(value, str) else value
    if not isinstance(calls, list):
        raise UserError(f"{where}: tool_calls is {shown_json(value)}; wanted a list")
    return [_call(call, where) for call in calls]


def _call(value: Any, where: str) -> dict[str, Any]:
    call = value if isinstance(value, dict) else {}
    function = call.get("function", call)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UserError(
            f"{where}: a tool call is {shown_json(value)}; wanted "
            '{"function": {"name": ..., "arguments": {...}}}'
        )
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _json(arguments, f"{where}: the arguments of {function['name']}")
    if not isinstance(arguments, dict):
        raise UserError(
            f"{where}: the arguments of {function['name']} are {shown_json(arguments)}; "
            "wanted an object, or its JSON text"
        )
    others = {k: v for k, v in call.items() if k not in ("function", "name", "arguments")}
    return (
        {"type": "function"}
        | others
        | {"function": {"name": function["name"], "arguments": arguments}}
    )


def read_json(value: Any, kind: type, where: str) -> Any:
    """A list or an object, or its JSON text, as the columns `tools` and `chat_template_kwargs`.

    Raises:
      UserError: it is of another kind.
    """
    found = _json(value, where) if isinstance(value, str) else value
    if not isinstance(found, kind):
        name = "list" if kind is list else "object"
        raise UserError(f"{where} is {shown_json(value)}; wanted a JSON {name}")
    return found


def _json(text: str, where: str) -> Any:
    try:
        return from_json(text)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error}); got {shown_json(text)}") from None
