"""Reward models: a head that gives scores, and the token that pads what it scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
from transformers import PreTrainedTokenizerFast

from ..data.examples import Examples
from ..errors import UserError
from ..models.config import ModelConfig
from ..models.decoder import Model, Params
from ..models.families import FAMILIES, read_config
from .load import load_config


def with_scores(config: ModelConfig, scores: int, where: Path) -> ModelConfig:
    """The configuration of a checkpoint with the head that is wanted of it.

    Args:
      config: of the checkpoint.
      scores: numbers that the head gives; 0: logits of the vocabulary.
      where: folder of the checkpoint, for messages.

    Raises:
      UserError: it has a reward head already, of another kind.
    """
    if config.scores == scores or not config.scores:
        return dataclasses.replace(config, scores=scores)
    if not scores:
        raise UserError(
            f"{where}: a reward model, whose head gives scores ({config.scores}) and no next "
            "tokens; choose a causal language model"
        )
    raise UserError(
        f"{where}: its reward head gives {config.scores} scores, and the objective reads {scores}; "
        "choose another checkpoint, or the objective that it was trained with"
    )


def new_head(where: Path, model: Model, key: jax.Array) -> Params | None:
    """A random reward head, as transformers makes one; None where the checkpoint has it already.

    Args:
      where: folder of the checkpoint.
      model: with a reward head.
      key: what it is drawn with.
    """
    raw = load_config(where)
    if not model.config.scores or read_config(raw).scores:
        return None
    leaf = model.abstract["head"]["kernel"]
    spread = float(raw.get("initializer_range", 0.02))

    def draw(key: jax.Array) -> jax.Array:
        return (spread * jax.random.normal(key, leaf.shape)).astype(leaf.dtype)

    return {"head": {"kernel": jax.jit(draw, out_shardings=leaf.sharding)(key)}}


def pad_token(
    tokenizer: PreTrainedTokenizerFast, data: Iterable[Examples], config: ModelConfig
) -> str:
    """A token that pads and that no response ends with: the tokenizer's own, or another special.

    transformers reads scores at the last token that is not the pad token, wherever padding is. A
    response whose own last token is the pad token, as EOS often is, would be scored one too early.

    Raises:
      UserError: there is none.
    """
    eos: Any = tokenizer.eos_token_id
    ends = {int(y[-1]) for examples in data for e in examples.items for y in e.responses} | {eos}
    special = {t.content: i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    by_name = sorted(special, key=lambda token: "pad" not in token.lower())
    for token in (tokenizer.pad_token, *by_name):
        number = tokenizer.get_vocab().get(str(token)) if token else None
        if number is not None and number not in ends and number < config.vocab:
            return str(token)
    raise UserError(
        "tokenizer_config.json: no pad token but those that end a response, where transformers "
        f"could not tell padding from the end; got pad_token {tokenizer.pad_token!r}; add one"
    )


def classifier_keys(config: ModelConfig) -> dict[str, Any]:
    """The keys of `config.json` that make a checkpoint a reward model for transformers."""
    labels = {str(i): f"LABEL_{i}" for i in range(config.scores)}
    return {
        "architectures": [FAMILIES[config.family].classifier],
        "id2label": labels,
        "label2id": {label: int(i) for i, label in labels.items()},
        "num_labels": config.scores,
    }
