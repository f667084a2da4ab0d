"""The verb `sample`: several answers of a model to every prompt, with their log-probabilities."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..data.ask import PromptRow, prompt_row
from ..data.encode import Encoder
from ..data.fields import CHATS, COLUMNS, Raw
from ..data.records import template_columns
from ..data.sources import raw_records
from ..errors import RunError, UserError
from ..hf.open import Opened
from ..settings.sample import Sample
from .decode import generate, refuse_scores
from .endpoint import Ask, Client
from .sample import prompt_ids

GIVEN = "given_"
"""Beginning of a column of the prompts that would make another kind of record of the row."""


class Prompted(NamedTuple):
    """A prompt with the other columns of its row."""

    row: PromptRow
    columns: dict[str, Any]


def read_prompted(path: str, limit: int | None, seed: int) -> list[Prompted]:
    """The prompts of a data file, in its order.

    Args:
      path: the file, or a data set of the hub.
      limit: the number of prompts to choose; None: all.
      seed: seed of the choice, 0 or more.

    Raises:
      UserError: the file is missing or broken, has too few rows, or a row has no prompt.
    """
    found = [_prompted(raw, where) for where, raw in raw_records(path, "train")]
    if len(found) < (limit or 1):
        raise UserError(
            f"{path}: has {len(found)} prompts; got limit {limit or 1}; lower it, or add prompts"
        )
    if limit is None:
        return found
    return [found[i] for i in sorted(np.random.default_rng(seed).permutation(len(found))[:limit])]


def _prompted(raw: Raw, where: str) -> Prompted:
    row = prompt_row(raw, where)
    taken = ("prompt", *CHATS, "tools", "chat_template_kwargs")
    others = {k: v for k, v in raw.items() if k not in taken and v is not None}
    columns = {f"{GIVEN}{k}" if k in COLUMNS else k: v for k, v in others.items()}
    return Prompted(row, template_columns(row.tools, row.variables) | columns)


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

    def __init__(self, opened: Opened, encoder: Encoder, how: Sample, seed: int):
        """Take a model.

        Args:
          opened: the model and its weights.
          encoder: its tokenizer, chat template and stop tokens.
          how: the settings of the draws.
          seed: seed of the first answer.

        Raises:
          UserError: the model gives scores.
        """
        refuse_scores(opened.model.spec)
        self._opened, self._encoder, self._how, self._seed = opened, encoder, how, seed
        self._tokens, self._seconds = 0, 0.0

    def __call__(self, prompts: Sequence[Prompted], first: int) -> list[dict[str, list[Any]]]:
        """The answer columns of each prompt."""
        how, seed = self._how, self._seed + first * self._how.n
        ids = prompt_ids(
            self._encoder,
            [prompt.row for prompt in prompts],
            chat=False,
            variables=how.chat_template_kwargs,
        )
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
        counts = [len(answer.tokens) + answer.stopped for answer in answers]
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
        if how.top_k:
            raise UserError("sample.top_k: an endpoint has no such option; leave it out")
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
