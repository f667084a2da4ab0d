"""What benchmarks share: a small GPT-NeoX checkpoint, a tokenizer for its data, versions."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from jaxalign.data.schema import Field, read_rows
from jaxalign.export import environment
from jaxalign.settings import Data
from jaxalign.world import make_data

VOCAB = 2048
PAD, END = "<|pad|>", "<|end|>"
TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}{% endfor %}"
PAIRS = 480
"""Pairs read of a data file: a few passes' worth for some dozen updates."""


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """The parser of a benchmark, with the flag that all of them have."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument(
        "--data", type=Path, help="preference pairs, .jsonl or .jsonl.gz; none: a synthetic set"
    )
    return parser


def start() -> None:
    """Full float32 on every device, and nothing of transformers' own on the terminal."""
    jax.config.update("jax_default_matmul_precision", "highest")
    transformers.utils.logging.disable_progress_bar()


def pairs(given: Path | None, folder: Path) -> Data:
    """How to read the given file of pairs; without one, the quickstart's, written to `folder`."""
    path = given or make_data(folder, seed=0, train=PAIRS, held_out=1)["pairs"]
    return Data(
        path=str(path.resolve()), limit=PAIRS, max_length=512, max_prompt=384, skip_empty=True
    )


def make_checkpoint(folder: Path, data: Data, *, layers: int) -> None:
    """Write a random GPT-NeoX model, as transformers makes it, and a tokenizer of the data.

    Args:
      folder: of the checkpoint; made if missing.
      data: of which to train a byte-level BPE of at most `VOCAB` tokens.
      layers: of the model.

    Raises:
      UserError: the data cannot be read.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(data), trainer)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, chat_template=TEMPLATE
    ).save_pretrained(folder)
    config = transformers.GPTNeoXConfig(
        vocab_size=VOCAB,
        hidden_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=512,
        initializer_range=0.05,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = transformers.GPTNeoXForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # made as 0 or 1, with which an error in them would not show
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)


def _texts(data: Data) -> Iterator[str]:
    for row in read_rows(data, data.path, data.split, "Pairs", Counter()):
        for field in (row.prompt, *row.responses):
            yield from _contents(field)


def _contents(field: Field) -> Sequence[str]:
    return [field] if isinstance(field, str) else [message["content"] for message in field]


def versions() -> str:
    """One line: python, the packages, the devices."""
    about = environment()
    packages = about["packages"] | {"torch": torch.__version__}
    listed = ", ".join(f"{name} {version}" for name, version in packages.items())
    return f"python {about['python']}, {listed}; {about['devices']}, {os.cpu_count()} CPU cores"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first of them the heading, as a Markdown table."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    head, *body = (
        "| " + " | ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    )
    rule = "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|"
    return "\n".join([head, rule, *body])
