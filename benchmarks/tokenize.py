"""Tokenizing preference pairs: against `datasets.map`, and a data set larger than memory.

    python -m benchmarks.tokenize [--pairs N] [--sample N] [--folder DIR] [--write]

The pairs are random words, about 1,000 tokens a pair, prompts as long as in chats of several turns.
`datasets.map` does what TRL does: it tokenizes the prompt, and the prompt with each response. All
sides use two processes and the same tokenizer; rates are those of `--sample` pairs. The large data
set is tokenized, opened again, and read by a loader, each in a process of its own.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .tables import publish, table

PROCESSES = 2
BATCHES = 50
"""Batches of 64 pairs that the loader of the large data set packs."""
WORDS = 30_000
"""Distinct words; their frequencies follow Zipf's law."""
LENGTHS = {"prompt": (280, 420), "chosen": (220, 380), "rejected": (220, 380)}
"""The least and the most words of each text."""


def make_pairs(path: Path, count: int) -> None:
    """Write pairs of random words."""
    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = np.array(["".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(WORDS)], "O")
    frequency = 1 / np.arange(1, WORDS + 1)
    pool = words[rng.choice(WORDS, 4_000_000, p=frequency / frequency.sum())]
    with path.open("w") as file:
        for _ in range(count):
            row = {}
            for name, (least, most) in LENGTHS.items():
                size = rng.integers(least, most)
                start = rng.integers(len(pool) - size)
                row[name] = " " * (name != "prompt") + " ".join(pool[start : start + size])
            file.write(json.dumps(row) + "\n")


def with_map(tokenizer: Any, path: Path, folder: Path, batch: int | None) -> dict[str, float]:
    """Tokenize by `datasets.map`, row by row or in batches."""
    import datasets

    datasets.disable_progress_bars()
    rows: Any = datasets.load_dataset(
        "json", data_files=str(path), split="train", cache_dir=str(folder)
    )
    end = [tokenizer.eos_token_id]

    def one(row: dict[str, str]) -> dict[str, list[int]]:
        prompt = tokenizer(row["prompt"])["input_ids"]
        found = {"prompt": prompt}
        for name in ("chosen", "rejected"):
            found[name] = tokenizer(row["prompt"] + row[name])["input_ids"][len(prompt) :] + end
        return found

    def several(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        prompts = tokenizer(rows["prompt"])["input_ids"]
        found = {"prompt": prompts}
        for name in ("chosen", "rejected"):
            texts = [p + r for p, r in zip(rows["prompt"], rows[name], strict=True)]
            ids = tokenizer(texts)["input_ids"]
            found[name] = [x[len(p) :] + end for p, x in zip(prompts, ids, strict=True)]
        return found

    start = time.perf_counter()
    done = rows.map(
        several if batch else one, batched=bool(batch), batch_size=batch, num_proc=PROCESSES
    )
    seconds = time.perf_counter() - start
    tokens = sum(map(len, (ids for row in done for ids in row.values() if isinstance(ids, list))))
    return {"seconds": seconds, "pairs": len(done), "tokens": tokens}


def with_store(tokenizer: Any, path: Path, folder: Path, batches: int) -> dict[str, float]:
    """Tokenize into a store, or open it, and pack some batches."""
    from jaxalign.core.layouts import PAIRS
    from jaxalign.data.encode import Encoder
    from jaxalign.data.loader import Loader
    from jaxalign.data.stored import Store, stored_examples
    from jaxalign.settings import Data

    data = Data(path=str(path), max_length=2048)
    start = time.perf_counter()
    encoder, store = Encoder(tokenizer, data), Store(folder, processes=PROCESSES)
    examples = stored_examples(data, str(path), "train", encoder, PAIRS, store, seed=0)
    seconds = time.perf_counter() - start
    if batches:
        loader = Loader(
            examples, batch_size=64, microbatches=1, shards=1, row_length=2048, shapes=4, seed=0
        )
        for _ in loader.batches(0, batches):
            pass
    tokens = sum(int(part.lengths.sum()) for part in examples.parts)
    own, child = (
        resource.getrusage(who).ru_maxrss / 2**20
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return {
        "seconds": seconds,
        "pairs": len(examples),
        "tokens": tokens,
        "own GiB": own,
        "child GiB": child,
    }


SIDES: dict[str, Callable[[Any, Path, Path], dict[str, float]]] = {
    "datasets.map, row by row": functools.partial(with_map, batch=None),
    "datasets.map, batches of 1,000": functools.partial(with_map, batch=1000),
    "jaxalign": functools.partial(with_store, batches=0),
    "with batches": functools.partial(with_store, batches=BATCHES),
}


def side(name: str, path: Path, work: Path, folder: Path) -> dict[str, float]:
    """Run one side in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.tokenize", "--side", name, "--folder", str(work)]
    command += ["--path", str(path), "--store", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def rates(work: Path, sample: int) -> str:
    """The table of rates on the same pairs; checks that the sides give as many tokens."""
    path = work / "sample.jsonl"
    make_pairs(path, sample)
    names = list(SIDES)[:3]
    found = {name: side(name, path, work, work / f"sample-{i}") for i, name in enumerate(names)}
    assert len({x["tokens"] for x in found.values()}) == 1, found
    first = found["jaxalign"]["seconds"]
    rows = [("side", "s", "pairs/s", "tokens/s", "time, x jaxalign")]
    for name, x in found.items():
        seconds = x["seconds"]
        rate, tokens = x["pairs"] / seconds, x["tokens"] / seconds
        cells = (f"{seconds:.1f}", f"{rate:,.0f}", f"{tokens:,.0f}", f"{seconds / first:.2f}")
        rows.append((name, *cells))
    return table(rows)


def starts(work: Path, pairs: int) -> str:
    """The table of the large data set: its first start and its second."""
    path, store = work / "pairs.jsonl", work / "store"
    make_pairs(path, pairs)
    rows = [("start", "s", "pairs", "tokens", "peak GiB", "peak GiB of a worker")]
    for name, which in (("first", "jaxalign"), ("second, and batches", "with batches")):
        x = side(which, path, work, store)
        sizes = f"{x['pairs']:,}", f"{x['tokens']:,}", f"{x['own GiB']:.2f}"
        rows.append((name, f"{x['seconds']:.1f}", *sizes, f"{x['child GiB']:.2f}"))
    return table(rows)


def main() -> None:
    """Make the data, run the sides and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=1_000_000, help="pairs of the large data set")
    parser.add_argument("--sample", type=int, default=8_192, help="pairs that all sides tokenize")
    parser.add_argument("--folder", type=Path, help="where to work; none: a temporary folder")
    parser.add_argument("--write", action="store_true", help="write the tables to results/")
    for name in ("--side", "--path", "--store"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        from jaxalign.hf.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(args.folder / "tokenizer")
        print(json.dumps(SIDES[args.side](tokenizer, Path(args.path), Path(args.store))))
        return
    from jaxalign.settings import Data

    from .tokenizer import make_tokenizer

    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        work = Path(folder)
        make_pairs(work / "train.jsonl", 2_000)
        make_tokenizer(work / "tokenizer", Data(path=str(work / "train.jsonl")), 32_000)
        names = ("tokenizers", "transformers", "datasets")
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
        text = f"# Tokenizing\n\n{versions}\n\n{rates(work, args.sample)}\n\n"
        publish("tokenize", text + starts(work, args.pairs), args.write)


if __name__ == "__main__":
    main()
