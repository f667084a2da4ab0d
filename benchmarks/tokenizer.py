"""A byte-level BPE of a benchmark's data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from jaxalign.core.layouts import PAIRS
from jaxalign.data.fields import Field
from jaxalign.data.read import read_records
from jaxalign.data.tally import Tally
from jaxalign.settings import Data

PAD, END = "<|pad|>", "<|end|>"
TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}{% endfor %}"


def make_tokenizer(folder: Path, data: Data, vocab: int) -> None:
    """Write a byte-level BPE of at most `vocab` tokens, trained on the data.

    Raises:
      UserError: the data cannot be read.
    """
    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(data), trainer)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, chat_template=TEMPLATE
    ).save_pretrained(folder)


def _texts(data: Data) -> Iterator[str]:
    for row in read_records(data, str(data.path), data.split, PAIRS, Tally()):
        for field in (row.prompt, *row.responses):
            yield from _contents(field)


def _contents(field: Field) -> Sequence[str]:
    return [field] if isinstance(field, str) else [message["content"] for message in field]
