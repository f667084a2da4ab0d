"""A chat with a model, line by line: the loop of `jaxalign chat`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.text import Text

from ..data.ask import PromptRow
from ..data.turns import Turn, encodable
from ..errors import UserError, near_miss
from ..hf.open import open_weights
from ..report.text import visible
from ..shown import escaped
from .sample import Draws, answer, chat_encoder, prompt_ids

COMMANDS = {
    "/reset": "begins a new chat",
    "/system": "begins a new chat, with the text after it as its system message",
    "/exit": "ends the chat",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chatting(Draws):
    """A chat model and how to draw its answers."""

    max_new: int = 512
    """Maximum number of new tokens per answer."""


class Reply(NamedTuple):
    """An answer of the model."""

    text: str
    whole: bool  # it ends with a stop token, not at `max_new`


Replier = Callable[[list[Turn], int, Callable[[str], object]], Reply]
"""(the turns so far, how many answers have been drawn, a function that gets each new piece of the
text while it is drawn) -> the next answer."""


def replier(folder: Path, settings: Chatting, mesh: Mesh) -> Replier:
    """A model that answers chats. Answer n of a process has the seed `settings.seed` + n.

    Args:
      folder: folder of a checkpoint or of an adapter.
      settings: the settings of the draws; this function ignores `model`, `system` and `mesh`.
      mesh: the device mesh.

    Raises:
      UserError: the checkpoint or a setting does not fit, or there is no chat template.
    """
    encoder, variables = chat_encoder(folder, settings)
    if not encoder.has_template:
        raise UserError(
            f"chat: the tokenizer of {settings.model} has no chat template; give one in "
            "--chat-template, or use `jaxalign generate` for a text"
        )
    model, params = open_weights(folder, mesh, dtype=settings.dtype)
    limit = model.spec.max_positions

    def reply(turns: list[Turn], number: int, say: Callable[[str], object]) -> Reply:
        row = PromptRow(turns, "chat", turns)
        (ids,) = prompt_ids(encoder, [row], chat=True, variables=variables)
        if len(ids) + settings.max_new > limit:
            raise UserError(
                f"chat: it has {len(ids)} tokens; with an answer of up to {settings.max_new} "
                f"(--max-new) that is more than the model's {limit} positions; /reset begins a "
                "new chat"
            )
        how = settings.how | {"seed": settings.seed + number}
        growing = Growing(say)

        def drawn(tokens: np.ndarray) -> None:
            growing.add(encoder.text(tokens))

        answers = answer(model, params, encoder, [ids], drawn=drawn, **how)
        growing.end(answers.texts[0])
        return Reply(answers.texts[0], len(answers.tokens[0]) < settings.max_new)

    return reply


class Growing:
    """A text that grows, said piece by piece."""

    def __init__(self, say: Callable[[str], object]):
        """`say` is called with each piece."""
        self._say, self._said = say, ""

    def add(self, text: str) -> None:
        """Say what is new in a text whose last characters may still change."""
        sure = text.rstrip("\ufffd ")  # half a character, or a space that the decoder may take back
        if sure.startswith(self._said) and sure != self._said:
            self._say(sure[len(self._said) :])
            self._said = sure

    def end(self, text: str) -> None:
        """Say the rest of the text; all of it, on a new line, if its beginning has changed."""
        same = text.startswith(self._said)
        self._say(text[len(self._said) :] if same else f"\n{text}")


def converse(
    reply: Replier,
    lines: Iterable[str],
    say: Callable[[str], object],
    console: Console,
    system: str | None = None,
    *,
    patient: bool,
) -> None:
    """Answer every line, with all turns before it as the history; blank lines are skipped.

    Args:
      reply: the model.
      lines: the messages of the user, and the commands in `COMMANDS`.
      say: what prints each piece of an answer, in which control characters are escaped.
      console: where messages about the chat go.
      system: text of the system message; None: no such message.
      patient: whether a mistake in a line is said and the chat goes on; otherwise it is an error.

    Raises:
      UserError: a line is an unknown command or does not fit, and `patient` is off.
    """
    if patient:
        console.print(Text(_help()))
    turns, number = _begin(system), 0
    for line in lines:
        text = line.strip()
        try:
            if line.rstrip() == "/exit":
                return
            if line.startswith("/"):
                turns = _begin(_system_after(text, system))
                system = turns[0]["content"] if turns else None
            elif text:
                message: Turn = {"role": "user", "content": encodable(text, "chat: the message")}
                found = _show(reply, [*turns, message], number, say, console)
                turns += [message, {"role": "assistant", "content": found.text}]
                number += 1
                if not found.whole:
                    console.print(Text("(cut at --max-new tokens)"))
        except UserError as error:
            if not patient:
                raise
            console.print(Text(visible(error)))


def _show(
    reply: Replier, turns: list[Turn], number: int, say: Callable[[str], object], console: Console
) -> Reply:
    """The next answer, shown while it is drawn."""
    with console.status("answering") as status:

        def show(piece: str) -> None:
            status.stop()
            say(escaped(piece, keep="\n\t"))

        found = reply(turns, number, show)
    say("\n")
    return found


def lines_of(stream: TextIO) -> Iterator[str]:
    """The lines of a stream, in a terminal each after a sign, with the keys of line editing.

    Raises:
      UserError: the stream is not text.
    """
    try:
        if not stream.isatty():
            yield from stream
            return
        import readline  # noqa: F401  `input` then has a history and cursor keys

        while True:
            yield input("> ") + "\n"
    except EOFError:
        print()
    except UnicodeDecodeError as error:
        raise UserError(f"standard input: not UTF-8 text ({error}); convert it") from None


def _begin(system: str | None) -> list[Turn]:
    return [] if system is None else [{"role": "system", "content": system}]


def _system_after(command: str, system: str | None) -> str | None:
    """The system message after a command that begins a new chat; `/system` alone: none."""
    name, _, text = command.partition(" ")
    if name not in COMMANDS:
        raise UserError(
            f"no command '{name}'; {near_miss(name, COMMANDS)}; a message that begins with / "
            "needs a space before it"
        )
    return text.strip() or None if name == "/system" else system


def _help() -> str:
    return "; ".join(f"{name} {what}" for name, what in COMMANDS.items())
