"""A small checkpoint to start from: a tokenizer of the data, random weights of transformers."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from jaxalign.settings import Data

from .tokenizer import make_tokenizer

VOCAB = 2048


def make_checkpoint(folder: Path, data: Data, *, layers: int) -> None:
    """Write a random GPT-NeoX model of width 128 and a tokenizer of the data.

    Args:
      folder: the folder of the checkpoint; made if missing.
      data: the data that trains a byte-level BPE of at most `VOCAB` tokens.
      layers: number of layers.

    Raises:
      UserError: the data cannot be read.
    """
    make_tokenizer(folder, data, VOCAB)
    make_model(folder, neox(vocab=VOCAB, width=128, layers=layers, spread=0.05))


def neox(
    *, vocab: int, width: int, layers: int, spread: float = 0.02
) -> transformers.GPTNeoXConfig:
    """A GPT-NeoX with 4 heads, a feed-forward four times as wide as the model, 512 positions.

    `spread` is the standard deviation of its random weights.
    """
    return transformers.GPTNeoXConfig(
        vocab_size=vocab,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=4 * width,
        max_position_embeddings=512,
        initializer_range=spread,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
    )


def make_model(folder: Path, config: transformers.PretrainedConfig, dtype: str = "float32") -> None:
    """Write random weights, the same for the same configuration; kept in `dtype`."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # initialized to 0 or 1, which would hide an error in them
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.to(getattr(torch, dtype)).save_pretrained(folder)
