"""Text in, text out: prompts, a checkpoint, and the answers sampled from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro
from jax.sharding import Mesh

from .. import settings
from ..data.chat import Messages
from ..data.files import FILES
from ..data.schema import prompts_of
from ..data.tokenize import encode_prompts
from ..errors import UserError
from ..files import read_json
from ..hf import load
from ..hf.peft import base_folder, load_merged
from ..models.decoder import build
from ..models.families import read_config
from .decode import generate, refuse_scores

Prompt = str | Messages


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which model answers, what, and how its tokens are drawn."""

    model: Annotated[str, tyro.conf.Positional]
    """Hugging Face folder or hub repository, of a model or of an adapter."""
    prompt: str | None = None
    """One prompt, text."""
    prompts: str | None = None
    """File of prompts: .jsonl, .jsonl.gz or .parquet with a column `prompt`, or one a line."""
    out: str | None = None
    """File to write; none: standard output."""
    max_new: int = 128
    """Most tokens drawn for a prompt."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token."""
    top_k: int = 0
    """Draw only from this many likeliest tokens; 0: from all."""
    top_p: float = 1.0
    """Draw only from the likeliest tokens that together have this probability."""
    seed: int = 0
    """Seed of all draws."""
    batch_size: int = 64
    """Prompts continued at a time."""
    diversity: bool = False
    """Also print how many n-grams of the answers are distinct, to standard error."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of parameters and matrix products."""
    mesh: settings.Mesh = dataclasses.field(default_factory=settings.Mesh)
    """Devices to spread the model and the prompts over."""


def read_prompts(settings: Sampling) -> list[Prompt]:
    """The prompts that the settings name.

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
    if path.name.endswith(FILES):
        return list(prompts_of(str(path)))
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as e:
        raise UserError(f"--prompts: {path} is not UTF-8 text ({e}); convert it") from None


class Answers(NamedTuple):
    """What a model answered, one to each prompt."""

    texts: list[str]
    tokens: list[np.ndarray]  # [length] each, without the one that ended it
    vocab: int


def answer(folder: Path, settings: Sampling, mesh: Mesh, prompts: Sequence[Prompt]) -> list[str]:
    """The texts of `sample`."""
    return sample(folder, settings, mesh, prompts).texts


def sample(folder: Path, settings: Sampling, mesh: Mesh, prompts: Sequence[Prompt]) -> Answers:
    """Sample one answer to every prompt.

    Args:
      folder: of the checkpoint, or of an adapter.
      settings: how to draw; `model`, `prompt`, `prompts`, `out`, `diversity` and `mesh` are
        not read here.
      mesh: of the devices.
      prompts: text, or messages for the tokenizer's chat template.

    Raises:
      UserError: the checkpoint, the prompts or a setting do not fit.
    """
    base = base_folder(folder)
    config = read_config(load.load_config(base))
    refuse_scores(config)  # before its weights are read
    model = build(config, mesh, dtype=settings.dtype, param_dtype=settings.dtype)
    tokenizer = load.load_tokenizer(base)
    tokens = generate(
        model,
        load_merged(folder, model),
        encode_prompts(tokenizer, prompts, "prompt"),
        max_new=settings.max_new,
        stop=stop_tokens(base, tokenizer),
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        seed=settings.seed,
        batch_size=settings.batch_size,
    )
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in tokens]
    return Answers(texts, tokens, config.vocab)


def stop_tokens(folder: Path, tokenizer: Any) -> tuple[int, ...]:
    """The ids that end an answer: the tokenizer's EOS and those of `generation_config.json`."""
    path = folder / "generation_config.json"
    named = read_json(path).get("eos_token_id") if path.exists() else None
    named = named if isinstance(named, list) else [named]
    return tuple(sorted({i for i in (*named, tokenizer.eos_token_id) if i is not None}))
