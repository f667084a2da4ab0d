"""Savings of packing and shared prompts: tokens through the decoder's layers, and compilations.

    python -m benchmarks.packing [--data PAIRS] [--microbatches N] [--write]

One pass over the data in the order of training, for each batch size and number of shapes, against
padding every sequence to the longest of its batch. A slot is a token that goes through the layers,
padding included; the tokens of a pair are the tokens of both sequences. Scored positions go through
the head.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path

from jaxalign.core.layouts import PAIRS
from jaxalign.data.encode import Encoder
from jaxalign.data.loader import Loader
from jaxalign.data.pack import token_counts
from jaxalign.data.store import Examples
from jaxalign.data.tokenize import load_examples
from jaxalign.hf.tokenizer import load_tokenizer
from jaxalign.settings import Data

from . import common
from .tables import publish, table
from .tokenizer import make_tokenizer

VOCAB = 8192
BATCHES, SHAPES, ANY = (8, 32, 128), (1, 2, 4, 8, 16), 10**6
HEADING = ["batch", "shapes", "slots per pair", "filled", "scored filled", "against padding"]


def loader_of(examples: Examples, batch_size: int, microbatches: int, shapes: int) -> Loader:
    """Batches for one device, with the default length of rows."""
    return Loader(
        examples,
        batch_size=batch_size,
        microbatches=microbatches,
        shards=1,
        row_length=Data(path="").row_length,
        shapes=shapes,
        seed=0,
    )


def padding(examples: Examples, batch_size: int) -> tuple[float, int]:
    """Slots per pair of padded batches, and the number of their shapes."""
    loader = loader_of(examples, batch_size, 1, 1)
    longest = []
    for step in range(loader.steps(1)):
        items = [examples[i] for i in loader.indices(step)]
        longest.append(max(len(e.prompt) + max(len(b.ids) for b in e.branches) for e in items))
    return 2 * sum(longest) / len(longest), len(set(longest))


def rows_of(examples: Examples, batch_size: int, microbatches: int) -> list[list[str]]:
    """The rows of the table with one batch size."""
    sequences = sum(2 * len(e.prompt) + sum(len(b.ids) for b in e.branches) for e in examples)
    pair = sequences / len(examples)
    padded, shapes = padding(examples, batch_size)
    rows = [
        [f"{batch_size}", f"padded, {shapes}", f"{padded:.0f}", f"{pair / padded:.0%}", "", "1.0x"]
    ]
    for asked in (*SHAPES, ANY):
        loader = loader_of(examples, batch_size, microbatches, asked)
        batches = list(loader.batches(0, loader.steps(1)))
        counts = [token_counts(batch) for batch in batches]
        slots = sum(c.slots for c in counts)
        pairs = len(batches) * batch_size
        rows.append(
            [
                f"{batch_size}",
                f"{len(loader.shapes_seen)}",
                f"{slots / pairs:.0f}",
                f"{sum(c.real for c in counts) / slots:.0%}",
                f"{sum(c.scored for c in counts) / sum(b.target.size for b in batches):.0%}",
                f"{padded * pairs / slots:.1f}x",
            ]
        )
    return rows


def main() -> int:
    """Print the table."""
    parser = common.arguments(__doc__)
    parser.add_argument("--microbatches", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="write the table to results/")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        data = common.pairs(args.data, Path(name) / "data")
        data = dataclasses.replace(data, limit=None, max_length=1024, max_prompt=768)
        make_tokenizer(Path(name) / "tokenizer", data, VOCAB)
        tokenizer = load_tokenizer(Path(name) / "tokenizer")
        examples = load_examples(
            data, str(data.path), data.split, Encoder(tokenizer), PAIRS, seed=0
        )
    prompts = sum(len(e.prompt) for e in examples)
    real = sum(e.length for e in examples)
    scored = examples.offsets[-1] / len(examples)
    rows = [HEADING]
    for batch_size in BATCHES:
        rows += rows_of(examples, batch_size, args.microbatches)
    about = (
        f"{len(examples):,} pairs, {(real + prompts) / len(examples):.0f} tokens each; sharing the "
        f"prompt leaves out {prompts / (real + prompts):.0%} of them; {scored:.0f} are scored. "
        f"Microbatches: {args.microbatches}."
    )
    given = " --data PATH" if args.data else ""
    run = f"`python -m benchmarks.packing{given} --microbatches {args.microbatches}`"
    parts = ["# Packed rows with shared prompts against padding", run, about, table(rows)]
    publish("packing", "\n\n".join([*parts, common.versions()]), args.write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
