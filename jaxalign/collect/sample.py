"""Sampling answers: prompts and a checkpoint in, texts out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro
from jax.sharding import Mesh
from rich.console import Console
from rich.text import Text

from .. import settings
from ..data.ask import PromptRow, asked, prompt_rows, text_row
from ..data.encode import Encoder
from ..data.records import template_columns
from ..data.sources import FILES
from ..data.template import Turns
from ..data.turns import read_json
from ..errors import UserError
from ..hf.card import chat_choice
from ..hf.open import open_config, open_encoder, open_weights
from ..hf.tokenizer import read_template
from ..models.decoder import Model, Params
from .decode import generate, refuse_scores

Prompt = str | Turns


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draws:
    """A model, its chat template, and how to draw its answers."""

    model: Annotated[str, tyro.conf.Positional]
    """Hugging Face folder or hub repository, of a model or of an adapter."""
    system: str | None = None
    """Text of a system message at the start of the chat."""
    chat_template: str | None = None
    """File with a chat template; none: the tokenizer's."""
    chat_template_kwargs: str | None = None
    """Values that the chat template reads, as JSON: '{"enable_thinking": false}'."""
    max_new: int = 128
    """Maximum number of new tokens per answer."""
    temperature: float = 1.0
    """Divisor of the logits; 0 takes the most likely token."""
    top_k: int = 0
    """Number of most likely tokens to draw from; 0: all."""
    top_p: float = 1.0
    """Draw from the most likely tokens that together have this probability."""
    seed: int = 0
    """Seed of the first answer; answer i has this number plus i."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of parameters and matrix products."""
    mesh: settings.Mesh = dataclasses.field(default_factory=settings.Mesh)
    """Devices to spread the model and the prompts over."""

    @property
    def how(self) -> dict[str, Any]:
        """The arguments of `decode.generate` among the settings."""
        names = ("max_new", "temperature", "top_k", "top_p", "seed")
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling(Draws):
    """A model, prompts for it, and how to draw its answers."""

    prompt: str | None = None
    """One prompt, text."""
    prompts: str | None = None
    """File of prompts: a data file with a column `prompt`, `messages` or `conversations`, such as
    a .jsonl file, or a file with one text per line."""
    chat: tyro.conf.DisallowNone[bool | None] = None
    """Make a text the message of a user, by the chat template; none: if the tokenizer has one and
    the name or the card of the model says that it answers chats."""
    out: str | None = None
    """File to write; default: standard output."""
    batch_size: int = 64
    """Number of answers drawn at a time."""
    diversity: bool = False
    """Also print the shares of distinct n-grams of the answers, to standard error."""


def read_prompts(settings: Sampling) -> list[PromptRow]:
    """The prompts of the settings, from `prompt` or the file `prompts`.

    Raises:
      UserError: none or both of `prompt` and `prompts` are given, or the file cannot be read or has
        no prompt.
    """
    if (settings.prompt is None) == (settings.prompts is None):
        raise UserError("generate: give one of --prompt and --prompts")
    if settings.prompts is None:
        return [text_row(settings.prompt or "", "--prompt")]
    path = Path(settings.prompts)
    if not path.is_file():
        raise UserError(f"--prompts: no file {path}")
    data = path.name.endswith(tuple(FILES))
    rows = prompt_rows(str(path)) if data else _lines(path)
    if not rows:
        raise UserError(f"--prompts: {path} has no prompts; give it at least one")
    return rows


def _lines(path: Path) -> list[PromptRow]:
    """The lines of a file of texts; only a line break ends one, as no other control character."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as e:
        raise UserError(f"--prompts: {path} is not UTF-8 text ({e}); convert it") from None
    return [text_row(x, f"{path} line {i}") for i, x in enumerate(lines, 1) if x.strip()]


def answered(row: PromptRow, answer: str) -> dict[str, Any]:
    """A row of the output: the prompt as it was given, what its template reads, and the answer."""
    columns = template_columns(row.tools, row.variables)
    return {"prompt": row.given, **columns, "answer": answer}


class Answers(NamedTuple):
    """The answers of a model, one per prompt."""

    texts: list[str]
    tokens: list[np.ndarray]  # [length] each, without the stop token
    vocab: int


def sample(
    folder: Path, settings: Sampling, mesh: Mesh, rows: Sequence[PromptRow], console: Console
) -> Answers:
    """Sample one answer to every prompt.

    Args:
      folder: folder of a checkpoint or of an adapter.
      settings: the settings of the draws; this function ignores `model`, `prompt`, `prompts`,
        `out`, `diversity` and `mesh`.
      mesh: the device mesh.
      rows: the prompts.
      console: where to say whether texts become chats, if `settings.chat` does not.

    Raises:
      UserError: the checkpoint, the prompts or a setting do not fit.
    """
    encoder, variables = chat_encoder(folder, settings)
    chat = settings.chat
    if chat is None and any(isinstance(row.prompt, str) for row in rows):
        choice = chat_choice(folder, encoder)
        console.print(Text(str(choice)))
        chat = choice.chat
    ids = prompt_ids(encoder, rows, chat=bool(chat), system=settings.system, variables=variables)
    model, params = open_weights(folder, mesh, dtype=settings.dtype)
    return answer(model, params, encoder, ids, batch_size=settings.batch_size, **settings.how)


def chat_encoder(folder: Path, settings: Draws) -> tuple[Encoder, Mapping[str, Any]]:
    """The tokenizer of a model with its chat template, and the values that the template reads.

    Args:
      folder: folder of a checkpoint or of an adapter.
      settings: `chat_template` and `chat_template_kwargs` are read.

    Raises:
      UserError: the model gives scores, or a file or the values cannot be read.
    """
    refuse_scores(open_config(folder))
    template, values = read_template(settings.chat_template), settings.chat_template_kwargs
    variables = read_json(values, dict, "--chat-template-kwargs") if values is not None else {}
    return open_encoder(folder, template), variables


def prompt_ids(
    encoder: Encoder,
    rows: Sequence[PromptRow],
    *,
    chat: bool,
    system: str | None = None,
    variables: Mapping[str, Any] | None = None,
) -> list[np.ndarray]:
    """The token ids of every prompt, ready to be answered, [length] int32 each.

    Args:
      encoder: the tokenizer and its chat template.
      rows: the prompts.
      chat: whether texts become chats.
      system: text of the system message of every chat; None: no such message.
      variables: values for the chat template.

    Raises:
      UserError: there is no chat template for a chat, or a prompt does not fit.
    """
    chats = [row.where for row in rows if chat or not isinstance(row.prompt, str)]
    if chats and not encoder.has_template:
        raise UserError(
            f"{chats[0]}: a chat needs a chat template, and the tokenizer has none; give one in "
            "--chat-template, give text without chat, or take a model whose tokenizer has one"
        )
    return encoder.prompts(asked(rows, chat=chat, system=system, variables=variables))


def answer(
    model: Model, params: Params, encoder: Encoder, ids: Sequence[np.ndarray], **how: Any
) -> Answers:
    """Sample one answer to every prompt from a model on the devices.

    Args:
      model: the decoder.
      params: its weights.
      encoder: its tokenizer, which knows the stop tokens.
      ids: the token ids of the prompts, [length] each.
      **how: the settings of the draws, arguments of `decode.generate`.

    Raises:
      UserError: the model gives scores, or a prompt or a setting does not fit.
    """
    drawn = generate(model, params, ids, stop=encoder.all_stops(), **how)
    tokens = [answer.tokens for answer in drawn]
    return Answers([encoder.text(ids) for ids in tokens], tokens, model.spec.vocab)
