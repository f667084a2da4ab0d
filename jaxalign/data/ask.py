"""Prompts that a model is to answer: the rows of a file, and the chats that they become."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ..errors import UserError
from .fields import CHATS, Field, Raw, field
from .records import INSTRUCTIONS, for_template
from .sources import raw_records
from .spans import Chat
from .turns import encodable


class PromptRow(NamedTuple):
    """A prompt, and where it comes from."""

    prompt: Field
    where: str  # for messages
    given: Any  # the prompt in the form of its file
    tools: list[Any] | None = None  # schemas of functions, for the chat template
    variables: Mapping[str, Any] = {}  # what the chat template may read besides


def text_row(text: str, where: str) -> PromptRow:
    """A row of a text alone.

    Raises:
      UserError: the text cannot be encoded.
    """
    return PromptRow(encodable(text, where), where, text)


def prompt_rows(path: str) -> list[PromptRow]:
    """The prompts of a data file.

    A prompt is the column `prompt`; without one it is `messages` or `conversations`, less the
    answer of the assistant at its end.

    Raises:
      UserError: the file is missing or broken, or a row has no prompt.
    """
    return [prompt_row(raw, where) for where, raw in raw_records(path, "")]


def prompt_row(row: Raw, where: str) -> PromptRow:
    """The prompt of one row.

    Raises:
      UserError: the row has none, or a column is of the wrong kind.
    """
    raw = {k: v for k, v in row.items() if v is not None}
    name = next((name for name in ("prompt", *CHATS) if name in raw), "prompt")
    found, given = field(raw, name, where), raw[name]
    if name in CHATS:
        if isinstance(found, str):
            raise UserError(f"{where}: '{name}' is text; wanted messages; call the column 'prompt'")
        while found and found[-1]["role"] == "assistant":
            found = found[:-1]
        given = given[: len(found)] if isinstance(given, list) else given
    return PromptRow(found, where, given, **for_template(raw, where))


def asked(
    rows: Iterable[PromptRow],
    *,
    chat: bool,
    system: str | None = None,
    variables: Mapping[str, Any] | None = None,
) -> list[tuple[str, str | Chat]]:
    """The texts and chats to be answered, each after its place.

    Args:
      rows: the prompts.
      chat: whether a text becomes the message of a user; otherwise it stays as it is.
      system: text of the system message before each chat; None: no such message.
      variables: values for the chat template; values of a row override them.

    Raises:
      UserError: a chat is empty, has no turn of the user or two system messages, or a text that
        stays as it is would need one.
    """
    return [(row.where, _asked(row, chat, system, variables or {})) for row in rows]


def _asked(
    row: PromptRow, chat: bool, system: str | None, variables: Mapping[str, Any]
) -> str | Chat:
    turns = row.prompt
    if isinstance(turns, str):
        if not chat and system is not None:
            raise UserError(
                f"{row.where}: a text without chat has no place for a system message; turn chat "
                "on (--chat), or leave the system message out"
            )
        if not chat:
            return turns
        if not turns.strip():
            raise UserError(f"{row.where}: the prompt is empty; write a message for the model")
        turns = [{"role": "user", "content": turns}]
    roles = [turn["role"] for turn in turns]
    if "user" not in roles:
        raise UserError(
            f"{row.where}: the prompt has no turn of the user; got roles "
            f"{', '.join(roles) or 'none'}; add one, or drop the row"
        )
    if system is not None:
        if roles[0] in INSTRUCTIONS:
            raise UserError(
                f"{row.where}: begins with a turn of the {roles[0]}, and a system message is "
                "given too; leave one of them out"
            )
        turns = [{"role": "system", "content": encodable(system, "system")}, *turns]
    return Chat(turns, row.tools, {**variables, **row.variables})
