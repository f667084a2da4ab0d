"""Tokens a second of sampled answers, next to `generate` of transformers, on the same work.

    python -m benchmarks.sampling [--prompts 256] [--write]

Both sides answer the same prompts of 32 to 127 random tokens, sorted by length, with a random Llama
in float32; one token in 40 ends an answer, and 128 tokens are the most, so that answers are of many
lengths, 38 tokens on average. `generate` of transformers gets `num_return_sequences`, and the best
of two numbers of rows a batch. A rate counts the tokens up to the end of each answer, the stop
token included. A first call of each side, which compiles, is not timed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from jaxalign.collect.decode import generate
from jaxalign.core.sharding import make_mesh
from jaxalign.hf.load import load_config, load_params
from jaxalign.models.decoder import build
from jaxalign.models.families import read_config
from jaxalign.settings import Mesh

from . import common
from .tables import publish, table

VOCAB, MAX_NEW, SLOTS = 4096, 128, 128
STOPS = list(range(VOCAB - VOCAB // 40, VOCAB))
ROWS = (256, 512)
"""Rows of a batch of transformers, of which the fastest counts."""
MODELS: dict[str, dict[str, Any]] = {
    "2 layers, width 128": {"num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 384},
    "4 layers, width 256": {"num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 768},
}
Draw = Callable[[Sequence[np.ndarray], int, int], int]
"""(prompts, answers to each, seed) -> tokens drawn."""


def rate(draw: Draw, prompts: Sequence[np.ndarray], n: int) -> float:
    """Tokens a second of a call for all prompts, after one that compiles its programs."""
    draw(prompts[:: 8 if draw.__name__ == "theirs" else 1], n, 1)
    began = time.perf_counter()
    tokens = draw(prompts, n, 2)
    return tokens / (time.perf_counter() - began)


def torch_draw(folder: Path, rows: int) -> Draw:
    """Answers by transformers, in batches of so many rows."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def theirs(prompts: Sequence[np.ndarray], n: int, seed: int) -> int:
        torch.manual_seed(seed)
        total = 0
        for start in range(0, len(prompts), rows // n):
            part = prompts[start : start + rows // n]
            width = max(map(len, part))
            ids = torch.zeros(len(part), width, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, prompt in enumerate(part):
                ids[row, width - len(prompt) :] = torch.tensor(prompt)
                mask[row, width - len(prompt) :] = 1
            with torch.no_grad():
                found: Any = model.generate(
                    ids,
                    attention_mask=mask,
                    do_sample=True,
                    top_k=0,
                    max_new_tokens=MAX_NEW,
                    num_return_sequences=n,
                    eos_token_id=STOPS,
                    pad_token_id=0,
                )
            ends = np.isin(found[:, width:].numpy(), STOPS)
            length = np.where(ends.any(1), ends.argmax(1) + 1, found.shape[1] - width)
            total += int(length.sum())
        return total

    return theirs


def our_draw(folder: Path) -> Draw:
    """Answers by jaxalign."""
    model = build(read_config(load_config(folder)), make_mesh(Mesh()))
    params = load_params(folder, model)

    def ours(prompts: Sequence[np.ndarray], n: int, seed: int) -> int:
        found = generate(
            model, params, prompts, n=n, max_new=MAX_NEW, stop=STOPS, seed=seed, batch_size=SLOTS
        )
        return sum(len(answer.tokens) + answer.stopped for answer in found)

    return ours


def prompts_of(count: int) -> list[np.ndarray]:
    """Random prompts, sorted by length."""
    rng = np.random.default_rng(0)
    lengths = np.sort(rng.integers(32, 128, count))
    return [rng.integers(4, STOPS[0], length).astype(np.int32) for length in lengths]


def main() -> None:
    """Time both sides and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--write", action="store_true", help="write results/sampling.md")
    given = parser.parse_args()
    common.start()
    prompts = prompts_of(given.prompts)
    rows = [("model", "answers a prompt", "transformers", "rows", "jaxalign", "ratio")]
    for name, shape in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            config = transformers.LlamaConfig(
                vocab_size=VOCAB,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=512,
                tie_word_embeddings=True,
                **shape,
            )
            torch.manual_seed(0)
            transformers.LlamaForCausalLM(config).save_pretrained(folder)
            for n in (8, 1):
                ours = rate(our_draw(Path(folder)), prompts, n)
                theirs = {r: rate(torch_draw(Path(folder), r), prompts, n) for r in ROWS}
                best = max(theirs, key=theirs.__getitem__)
                cells = (f"{theirs[best]:,.0f}", str(best), f"{ours:,.0f}")
                rows.append((name, str(n), *cells, f"{ours / theirs[best]:.2f}"))
                print(rows[-1], file=sys.stderr, flush=True)
    text = f"# Sampled tokens a second\n\n{common.versions('torch')}\n\n{table(rows)}\n\n"
    publish(
        "sampling",
        text + (__doc__ or "").partition("\n\n    ")[2].partition("\n\n")[2],
        given.write,
    )


if __name__ == "__main__":
    main()
