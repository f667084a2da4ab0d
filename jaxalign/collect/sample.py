"""Sampling answers: prompts and a checkpoint in, texts out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro
from jax.sharding import Mesh

from .. import settings
from ..data.encode import Encoder
from ..data.read import prompts_of
from ..data.sources import FILES
from ..data.template import Turns
from ..errors import UserError
from ..hf.open import Opened, open_config, open_model
from .decode import generate, refuse_scores

Prompt = str | Turns


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """A model, prompts for it, and how to draw its answers."""

    model: Annotated[str, tyro.conf.Positional]
    """Hugging Face folder or hub repository, of a model or of an adapter."""
    prompt: str | None = None
    """One prompt, text."""
    prompts: str | None = None
    """File of prompts: .jsonl, .jsonl.gz or .parquet with a column `prompt`, or one per line."""
    out: str | None = None
    """File to write; default: standard output."""
    max_new: int = 128
    """Maximum number of new tokens per prompt."""
    temperature: float = 1.0
    """Divisor of the logits; 0 takes the most likely token."""
    top_k: int = 0
    """Number of most likely tokens to draw from; 0: all."""
    top_p: float = 1.0
    """Draw from the most likely tokens that together have this probability."""
    seed: int = 0
    """Seed of all draws."""
    batch_size: int = 64
    """Number of prompts per batch."""
    diversity: bool = False
    """Also print the shares of distinct n-grams of the answers, to standard error."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of parameters and matrix products."""
    mesh: settings.Mesh = dataclasses.field(default_factory=settings.Mesh)
    """Devices to spread the model and the prompts over."""


def read_prompts(settings: Sampling) -> list[Prompt]:
    """The prompts of the settings, from `prompt` or the file `prompts`.

    Raises:
      UserError: none or both of `prompt` and `prompts` are given, or the file cannot be read.
    """
    if (settings.prompt is None) == (settings.prompts is None):
        raise UserError("generate: give one of --prompt and --prompts")
    if settings.prompts is None:
        return [settings.prompt or ""]
    path = Path(settings.prompts)
    if not path.is_file():
        raise UserError(f"--prompts: no file {path}")
    if path.name.endswith(tuple(FILES)):
        return list(prompts_of(str(path)))
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as e:
        raise UserError(f"--prompts: {path} is not UTF-8 text ({e}); convert it") from None


class Answers(NamedTuple):
    """The answers of a model, one per prompt."""

    texts: list[str]
    tokens: list[np.ndarray]  # [length] each, without the stop token
    vocab: int


def sample(folder: Path, settings: Sampling, mesh: Mesh, prompts: Sequence[Prompt]) -> Answers:
    """Sample one answer to every prompt.

    Args:
      folder: folder of a checkpoint or of an adapter.
      settings: the settings of the draws; this function ignores `model`, `prompt`, `prompts`,
        `out`, `diversity` and `mesh`.
      mesh: the device mesh.
      prompts: text, or messages for the tokenizer's chat template.

    Raises:
      UserError: the checkpoint, the prompts or a setting do not fit.
    """
    refuse_scores(open_config(folder))  # before it reads the weights
    opened = open_model(folder, mesh, dtype=settings.dtype)
    return answer(
        opened,
        prompts,
        max_new=settings.max_new,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        seed=settings.seed,
        batch_size=settings.batch_size,
    )


def answer(opened: Opened, prompts: Sequence[Prompt], **how: Any) -> Answers:
    """Sample one answer to every prompt from a model on the devices.

    Args:
      opened: the model.
      prompts: text, or messages for the tokenizer's chat template.
      **how: the settings of the draws, arguments of `decode.generate`.

    Raises:
      UserError: the model gives scores, or a prompt or a setting does not fit.
    """
    ids = Encoder(opened.tokenizer, stops=opened.stop).prompts(prompts, "prompt")
    tokens = generate(opened.model, opened.params, ids, stop=opened.stop, **how)
    texts = [str(opened.tokenizer.decode(ids, skip_special_tokens=True)) for ids in tokens]
    return Answers(texts, tokens, opened.model.config.vocab)
