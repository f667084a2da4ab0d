"""One side of the race on one model: its steps on the batches that every side has.

    ... MODEL SIDE

The sides are the sides of `benchmarks.race_cpu`, on the terms of `work.GPU`: TRL with its defaults,
with and without a precomputed reference; a plain torch step that computes only the logits of scored
tokens; jaxalign. The first pass over the batches compiles, and its losses are compared between the
sides; a figure is the mean over the batches of the median over the later passes.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

from ..race import work
from ..race.worker import Missing, Worker
from .part import arguments, record, turn

SIDES = {
    "jaxalign": ("jaxalign_side", "dpo", "1", "2048"),
    "torch-compact": ("torch_side", "compact"),
    "trl-cached": ("trl_side", "cached"),
    "trl": ("trl_side", "live"),
}
PASSES = 4


def figures(folder: Path, first: list[Any], later: list[Any]) -> dict[str, Any]:
    """The table's figures of one side; times in seconds."""
    batches = work.batches(folder)
    medians = [
        statistics.median(step["wall"] for step in later[i :: len(batches)])
        for i in range(len(batches))
    ]
    flops = [work.useful_flops(work.decoder(folder), pairs) for pairs in batches]
    return {
        "seconds": statistics.mean(medians),
        "tokens": statistics.mean(sum(pair.tokens for pair in pairs) for pairs in batches),
        "pairs_count": work.terms(folder).batch,
        "flops": statistics.mean(flops),
        "peak_bytes": max(step["peak"] for step in first + later) * 1e6,
        "first_pass_seconds": sum(step["wall"] for step in first),
        "losses": [step["loss"] for step in first],
        "norms": [step["norm"] for step in first],
    }


def main() -> None:
    """Run one side."""
    parser = arguments(__doc__)
    parser.add_argument("model")
    parser.add_argument("side", choices=SIDES)
    args = parser.parse_args()
    folder = args.work / "race" / args.model
    program, *how = SIDES[args.side]
    command = [sys.executable, "-m", f"benchmarks.race.{program}", str(folder), *how]
    about = {"model": args.model, "side": args.side}
    try:
        worker = Worker(command, args.out.with_suffix(".side.log"), gpu=True)
    except Missing as missing:
        record(args.out, "race", **about, absent=missing.package)
        return
    try:
        turn()
        worker.load()
        count = len(work.batches(folder))
        first = [worker.step() for _ in range(count)]
        later = [worker.step() for _ in range(count * (1 if args.quick else PASSES))]
    finally:
        worker.close()
    found = figures(folder, first, later)
    record(args.out, "race", **about, versions=worker.versions, **found)


if __name__ == "__main__":
    main()
