"""Make the inputs of a race: a checkpoint for each model, next to the same pairs of token ids.

    python -m benchmarks.race.prepare FOLDER LAYOUT BATCHES DATA MODEL...

LAYOUT: `packed`, the pairs of DATA; `padded`, full rows of random tokens; `gpu`, the pairs of DATA
on the terms of the race on a GPU, or random ones shaped like HH.
DATA may be `-`: the quickstart's synthetic pairs.
FOLDER gets a folder for each model, with `model`, `pairs.npz` and a small `any.jsonl`.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import transformers
from transformers import LlamaConfig, Qwen2Config

from jaxalign.core.layouts import PAIRS
from jaxalign.data.encode import Encoder
from jaxalign.data.tokenize import load_examples
from jaxalign.hf.tokenizer import load_tokenizer
from jaxalign.settings import Data

from .. import common, shapes
from ..checkpoint import make_model, neox
from ..tokenizer import make_tokenizer
from . import work

VOCAB = 8192  # largest tokenizer: the other tokens of a larger model are never in the data


def llama(name: str) -> LlamaConfig:
    """A published Llama."""
    return LlamaConfig(**shapes.config(name))


def qwen2(vocab: int) -> Qwen2Config:
    """The closest model to Qwen3 in jaxalign; Qwen3 norms queries and keys and has no biases."""
    return Qwen2Config(
        vocab_size=vocab,
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=768,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
    )


MODELS = {
    "neox-8k": neox(vocab=8192, width=256, layers=6),
    "neox-50k": neox(vocab=50304, width=128, layers=6),
    "qwen-8k": qwen2(8192),
    "qwen-50k": qwen2(50304),
    "tiny": neox(vocab=2048, width=32, layers=1),
    "Llama-3.2-1B": llama("Llama-3.2-1B"),
    "Qwen2.5-0.5B": Qwen2Config(**shapes.config("Qwen2.5-0.5B")),
}


def given_pairs(data: Data, tokenizer: Path, count: int, terms: work.Terms) -> list[work.Pair]:
    """Pairs from all over the data set, prompts cut on the left and responses on the right.

    Raises:
      SystemExit: there are too few pairs.
    """
    data = dataclasses.replace(data, max_length=terms.length, max_prompt=terms.prompt)
    encoder = Encoder(load_tokenizer(tokenizer))
    items = load_examples(data, str(data.path), data.split, encoder, PAIRS, seed=0)
    if len(items) < count:
        raise SystemExit(f"--data: {len(items)} pairs are too few; {count} are needed")
    chosen = items[:: len(items) // count][:count]
    return [work.Pair(e.prompt, *(b.ids[: terms.response] for b in e.branches)) for e in chosen]


def drawn_pairs(count: int) -> list[work.Pair]:
    """Random tokens with the lengths of HH pairs."""
    return [work.Pair(x.prompt, *(b.ids for b in x.branches)) for x in shapes.hh_like(count, VOCAB)]


def full_pairs(count: int, terms: work.Terms) -> list[work.Pair]:
    """Random tokens in full rows: a prompt of one token, with which nothing can be shared."""
    rng = np.random.default_rng(0)
    sizes = (1, terms.length - 1, terms.length - 1)
    draw = [[rng.integers(2, 2048, n, dtype=np.int32) for n in sizes] for _ in range(count)]
    return [work.Pair(*parts) for parts in draw]


def main() -> None:
    """Write all."""
    folder, layout, batches, given, *names = sys.argv[1:]
    terms = work.GPU if layout == "gpu" else work.CPU
    folder, count = Path(folder), int(batches) * terms.batch
    transformers.utils.logging.disable_progress_bar()
    data = common.pairs(None if given == "-" else Path(given), folder / "data")
    data = dataclasses.replace(data, limit=None)
    tokenizer = folder / "tokenizer"
    make_tokenizer(tokenizer, data, min(VOCAB, *(MODELS[name].vocab_size for name in names)))
    if layout == "padded":
        pairs = full_pairs(count, terms)
    elif layout == "gpu" and given == "-":
        pairs = drawn_pairs(count)
    else:
        pairs = given_pairs(data, tokenizer, count, terms)
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    dtype = "bfloat16" if layout == "gpu" else "float32"
    for name in names:
        shutil.copytree(tokenizer, folder / name / "model")
        make_model(folder / name / "model", MODELS[name], dtype)
        work.save(folder / name, pairs, terms)
        (folder / name / "any.jsonl").write_text(json.dumps(row))


if __name__ == "__main__":
    main()
