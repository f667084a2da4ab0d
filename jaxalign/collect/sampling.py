"""The verb `sample`: several answers of a model to every prompt, with their log-probabilities."""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..data.ask import PromptRow, prompt_row
from ..data.encode import Encoder
from ..data.fields import CHATS, COLUMNS, Raw
from ..data.records import template_columns
from ..data.sources import raw_records
from ..errors import RunError, UserError
from ..hf.open import Opened
from ..hf.peft import base_folder
from ..hf.tokenizer import load_tokenizer, read_template, stop_tokens
from ..models.spec import Spec
from ..settings.sample import Sample
from .answers import SCORER, SINGULAR
from .decode import check_prompt, generate, refuse_scores
from .endpoint import Ask, Client
from .sample import prompt_ids

GIVEN = "given_"
"""Beginning of a column of the prompts that would be read as one of the new answers."""


class Prompted(NamedTuple):
    """A prompt with the other columns of its row."""

    row: PromptRow
    columns: dict[str, Any]


def read_prompted(how: Sample, seed: int) -> list[Prompted]:
    """The prompts of a data file, in its order.

    Args:
      how: the settings, with a path of prompts that exists.
      seed: seed of the choice of `how.limit` prompts, 0 or more.

    Raises:
      UserError: the file is missing or broken, has too few rows, or a row has no prompt, or a
        prompt that the endpoint cannot get.
    """
    path, limit = how.prompts, how.limit
    found = [_prompted(raw, where) for where, raw in raw_records(path, "train")]
    if not found:
        raise UserError(f"{path}: has no prompts; give it at least one")
    if len(found) < (limit or 1):
        raise UserError(f"{path}: has {len(found)} prompts, fewer than limit {limit}; lower it")
    if limit is not None:
        order = np.random.default_rng(seed).permutation(len(found))
        found = [found[i] for i in sorted(order[:limit])]
    for row in (prompt.row for prompt in found) if how.endpoint else ():
        for name in template_columns(row.tools, row.variables):
            raise UserError(
                f"{row.where}: has '{name}', which is for a chat template and not sent to an "
                "endpoint; drop the column, or sample with a model"
            )
    return found


def _prompted(raw: Raw, where: str) -> Prompted:
    row = prompt_row(raw, where)
    taken = ("prompt", *CHATS, "tools", "chat_template_kwargs")
    others = {k: v for k, v in raw.items() if k not in taken and v is not None}
    columns = {f"{GIVEN}{k}" if _of_answers(k) else k: v for k, v in others.items()}
    if len(columns) < len(others):
        twice = next(k for k in others if f"{GIVEN}{k}" in others)
        raise UserError(f"{where}: has both '{twice}' and '{GIVEN}{twice}'; drop one of them")
    return Prompted(row, template_columns(row.tools, row.variables) | columns)


def _of_answers(column: str) -> bool:
    """Whether a column is about the answers of its row, which are other ones now."""
    return column in (*COLUMNS, *SINGULAR) or column.startswith(SCORER)


def open_prompter(how: Sample, folder: Path, now: datetime.datetime | None) -> Encoder:
    """What makes tokens of the prompts of a model.

    Args:
      how: the settings; the chat template is read.
      folder: folder of a checkpoint or of an adapter.
      now: the time that the clock of chat templates shows; None: the time of this call.

    Raises:
      UserError: a file of the tokenizer or of the template is missing or damaged.
    """
    base = base_folder(folder)
    tokenizer = load_tokenizer(base)
    template = read_template(how.chat_template)
    return Encoder(tokenizer, stops=stop_tokens(base, tokenizer), template=template, now=now)


def ids_of(prompts: Sequence[Prompted], encoder: Encoder, how: Sample) -> list[np.ndarray]:
    """The token ids of every prompt, [length] int32 each.

    Args:
      prompts: the prompts.
      encoder: the tokenizer and its chat template.
      how: the settings; the values for the chat template are read.

    Raises:
      UserError: there is no chat template for a chat, or a prompt does not fit.
    """
    rows = [prompt.row for prompt in prompts]
    return prompt_ids(encoder, rows, chat=False, variables=how.chat_template_kwargs)


def check_prompts(prompts: Sequence[Prompted], encoder: Encoder, how: Sample, spec: Spec) -> None:
    """Refuse prompts that a model cannot answer, before it is read.

    Args:
      prompts: the prompts.
      encoder: its tokenizer and its chat template.
      how: the settings of the draws.
      spec: the model.

    Raises:
      UserError: the model gives scores, or a prompt is empty, too long, or a chat without a
        template.
    """
    refuse_scores(spec)
    for prompt, ids in zip(prompts, ids_of(prompts, encoder, how), strict=True):
        check_prompt(spec, ids, prompt.row.where, how.max_new)


class Sampler(Protocol):
    """What answers prompts: a model on the devices, or an endpoint."""

    def __call__(self, prompts: Sequence[Prompted], first: int) -> list[dict[str, list[Any]]]:
        """The answer columns of each prompt; `first` is the number of the first prompt."""
        ...

    def report(self) -> dict[str, float]:
        """Numbers about the answers so far, by name."""
        ...


class Drawn:
    """A model on the devices as a sampler."""

    def __init__(
        self, opened: Opened, encoder: Encoder, how: Sample, seed: int, *, ids: bool = False
    ):
        """Take a model.

        Args:
          opened: the model and its weights.
          encoder: its tokenizer, chat template and stop tokens.
          how: the settings of the draws.
          seed: seed of the first answer.
          ids: whether the answer columns have `token_ids`, the tokens of each answer.

        Raises:
          UserError: the model gives scores.
        """
        refuse_scores(opened.model.spec)
        self._opened, self._encoder, self._how, self._seed = opened, encoder, how, seed
        self._ids, self._tokens, self._seconds = ids, 0, 0.0

    def __call__(self, prompts: Sequence[Prompted], first: int) -> list[dict[str, list[Any]]]:
        """The answer columns of each prompt."""
        how, seed = self._how, self._seed + first * self._how.n
        ids = ids_of(prompts, self._encoder, how)
        began = time.monotonic()
        answers = generate(
            self._opened.model,
            self._opened.params,
            ids,
            max_new=how.max_new,
            stop=self._encoder.all_stops(),
            n=how.n,
            temperature=how.temperature,
            top_k=how.top_k,
            top_p=how.top_p,
            seed=seed,
            batch_size=how.batch_size,
        )
        self._seconds += time.monotonic() - began
        counts = [len(answer.drawn) for answer in answers]
        self._tokens += sum(counts)
        texts = [self._encoder.text(answer.tokens) for answer in answers]
        columns = {
            "responses": texts,
            "finishes": ["stop" if answer.stopped else "length" for answer in answers],
            "tokens": counts,
            "logps": [answer.logp for answer in answers],
            "sampler_logps": [answer.sampler_logp for answer in answers],
            "seeds": [(seed + i) % 2**32 for i in range(len(answers))],
        }
        if self._ids:
            columns["token_ids"] = [answer.drawn.tolist() for answer in answers]
        n = how.n
        return [
            {name: column[i * n : (i + 1) * n] for name, column in columns.items()}
            for i in range(len(prompts))
        ]

    def report(self) -> dict[str, float]:
        """Tokens drawn, and tokens per second."""
        return {"drawn": self._tokens, "tokens/s": self._tokens / max(self._seconds, 1e-9)}


class Asked:
    """A model behind an endpoint as a sampler."""

    def __init__(self, how: Sample, seed: int):
        """Open the endpoint; nothing is sent.

        Raises:
          UserError: the API key or the `openai` package is missing.
        """
        assert how.endpoint is not None
        self._client, self._how, self._seed = Client(how.endpoint), how, seed

    def __call__(self, prompts: Sequence[Prompted], first: int) -> list[dict[str, list[Any]]]:
        """The answer columns of each prompt: texts and how they ended."""
        how = self._how
        requests = [
            Ask(
                {
                    "messages": _messages(prompt.row),
                    "n": how.n,
                    "temperature": how.temperature,
                    "top_p": how.top_p,
                    "max_tokens": how.max_new,
                    "seed": self._seed + first + i,
                }
            )
            for i, prompt in enumerate(prompts)
        ]
        replies = self._client.ask(requests)
        for prompt, reply in zip(prompts, replies, strict=True):
            if len(reply.texts) != how.n:
                raise RunError(
                    f"{prompt.row.where}: the endpoint gave {len(reply.texts)} answers; wanted "
                    f"{how.n}; does it support several answers (n)?"
                )
        return [{"responses": reply.texts, "finishes": reply.finishes} for reply in replies]

    def report(self) -> dict[str, float]:
        """Requests, tokens and price."""
        return self._client.report()


def _messages(row: PromptRow) -> list[Any]:
    """The prompt as messages; a text is the message of a user."""
    if isinstance(row.prompt, str):
        return [{"role": "user", "content": row.prompt}]
    return [dict(turn) for turn in row.prompt]


def sampled_rows(prompts: Sequence[Prompted], sampler: Sampler, first: int) -> list[dict[str, Any]]:
    """A row for each prompt: the prompt, its other columns and the answer columns.

    Args:
      prompts: the prompts.
      sampler: what answers them.
      first: the number of the first prompt, on which the seeds depend.
    """
    answers = sampler(prompts, first)
    return [
        {"prompt": prompt.row.given} | prompt.columns | columns
        for prompt, columns in zip(prompts, answers, strict=True)
    ]
