"""A race on the CPU: TRL, Tunix and plain torch against jaxalign, on the same work in one run.

    python -m benchmarks.race_cpu [--data PAIRS] [--trl-python P] [--tunix-python P] [--write]

Work: 8 pairs a step, prompts of at most 160 and responses of at most 96 tokens, float32, forward,
backward, clipping and AdamW. Every side is a separate process, reads the same token ids from disk,
and the GPT-NeoX sides start from one transformers checkpoint with random weights. Tunix has its own
Qwen3 and pads to fixed lengths; jaxalign runs a Qwen2 of the same widths against it.

The first pass over the batches is not timed: it compiles, and its losses and gradient norms must
agree to 2e-4 nats and 1e-3 of the norm, or nothing is timed and the exit code is 1. Then the sides
take turns, A B C A B C. A figure is the mean over the batches of the median over the passes; the
time to compile is the time of the first pass minus the time of as many later steps.

CPU seconds are user and system time of the whole process since its last answer; on a busy machine
read them, not wall seconds. Memory is the peak resident size of the process. The useful FLOPs of a
step (`race.work.useful_flops`) count real tokens only, a prompt once: linear layers 2 per parameter
and token, attention only where a query may see a key, the output matrix only at scored tokens, and
three times the sum for forward and backward. Their rate is given as a share of the rate of large
float32 matrix products, timed in the same run.

Tokens come from a BPE of 8,192 tokens trained on the data, in the model of 50,304 as well: the
text is too short for more. `--layout padded` races on full rows of random tokens with a prompt of
one token, where packing and sharing gain nothing.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .race import work
from .race.worker import Missing, Worker, environment
from .tables import publish, table

LOSS, NORM = 2e-4, 1e-3  # largest differences: nats; of the norm itself
"""Torch sums the squares of a large gradient in float32, which alone costs some 2e-4 of a norm."""
MODELS = {
    "neox-8k": "GPT-NeoX, hidden 256, 6 layers, V 8,192",
    "neox-50k": "GPT-NeoX, hidden 128, 6 layers, V 50,304",
    "qwen-8k": "hidden 256, 6 layers, V 8,192 (Tunix: Qwen3, jaxalign: Qwen2)",
    "qwen-50k": "hidden 256, 6 layers, V 50,304 (Tunix: Qwen3, jaxalign: Qwen2)",
    "tiny": "GPT-NeoX, hidden 32, 1 layer, V 2,048: for tests",
}
SIDES = {
    "trl": ("TRL", "trl_side", "live"),
    "trl-cached": ("TRL, cached reference", "trl_side", "cached"),
    "torch": ("torch, full logits, live reference", "torch_side", "full"),
    "torch-compact": ("torch, compact head, cached reference", "torch_side", "compact"),
    "tunix": ("Tunix", "tunix_side"),
    "jaxalign": ("jaxalign DPO", "jaxalign_side", "dpo"),
    "jaxalign-slpo": ("jaxalign SLPO", "jaxalign_side", "slpo"),
}
"""Name -> what the table calls it, its program in `benchmarks.race`, the program's argument."""
INSTALL = {
    "trl_side": "pip install trl==1.16.0 torch==2.13.0; --trl-python",
    "tunix_side": "pip install google-tunix==0.1.7; --tunix-python",
    "torch_side": "pip install torch==2.13.0",
}
BASE = "jaxalign"  # the divisor of the others' CPU seconds
UNCHECKED = ("tunix", "jaxalign-slpo")  # another model; another loss


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--data", type=Path, help="preference pairs, .jsonl or .jsonl.gz; none: a synthetic set"
    )
    parser.add_argument("--layout", choices=("packed", "padded"), default="packed")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS)[:4])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--batches", type=int, default=3, help="different steps")
    parser.add_argument("--passes", type=int, default=2, help="timed, over the batches")
    parser.add_argument("--microbatches", type=int, default=1, help="of jaxalign")
    parser.add_argument("--row-length", type=int, default=2048, help="of jaxalign, tokens")
    parser.add_argument("--trl-python", default=sys.executable, help="interpreter that has TRL")
    parser.add_argument("--tunix-python", default=sys.executable, help="interpreter that has Tunix")
    parser.add_argument("--write", action="store_true", help="write the table to results/")
    return parser.parse_args()


def entered(model: str, sides: Sequence[str]) -> list[str]:
    """The sides that race on a model: Tunix only on its own, the other rivals only on GPT-NeoX."""
    return [s for s in sides if s == BASE or (s == "tunix") == model.startswith("qwen")]


def start(side: str, folder: Path, args: argparse.Namespace) -> Worker:
    """Start a side's process and wait until it has imported what it needs.

    Raises:
      Missing: the side's interpreter lacks a package.
    """
    _, program, *how = SIDES[side]
    python = {"trl_side": args.trl_python, "tunix_side": args.tunix_python}
    if program == "jaxalign_side":
        how += [str(args.microbatches), str(args.row_length)]
    command = [python.get(program, sys.executable), "-m", f"benchmarks.race.{program}"]
    return Worker([*command, str(folder), *how], folder / f"{side}.log")


def differences(first: Mapping[str, Sequence[Any]]) -> tuple[float, float]:
    """The largest differences of the first pass: of losses, nats; of gradient norms, relative.

    Every side is compared with the first one. Tunix trains another model and SLPO is another loss:
    Tunix must have log 2 as its first loss, SLPO must be finite. A NaN anywhere is the largest
    difference.
    """
    losses, norms = [0.0], [0.0]
    checked = {name: steps for name, steps in first.items() if name not in UNCHECKED}
    base = next(iter(checked.values()), ())
    for steps in checked.values():
        both = list(zip(steps, base, strict=True))
        losses += [abs(mine["loss"] - theirs["loss"]) for mine, theirs in both]
        norms += [abs(mine["norm"] / theirs["norm"] - 1) for mine, theirs in both]
    losses += [abs(first[s][0]["loss"] - math.log(2)) for s in first if s != "jaxalign-slpo"]
    norms += [0 * (step["loss"] + step["norm"]) for s in first for step in first[s]]
    return float(np.max(losses)), float(np.max(norms))


def per_step(steps: Sequence[Mapping[str, float]], key: str, batches: int) -> float:
    """Mean over the batches of the median over the passes."""
    medians = [statistics.median(s[key] for s in steps[i::batches]) for i in range(batches)]
    return statistics.mean(medians)


def race(folder: Path, model: str, args: argparse.Namespace) -> tuple[list[list[str]], list[str]]:
    """All sides on one model.

    Returns:
      The rows of the table, and lines to print below it.

    Raises:
      SystemExit: the sides do not agree, or one failed.
    """
    workers: dict[str, Worker] = {}
    absent: list[list[str]] = []
    versions: list[str] = []
    try:
        for side in entered(model, args.sides):
            progress(f"{model}: starting {side}")
            try:
                workers[side] = start(side, folder, args)
                workers[side].load()
            except Missing as missing:
                absent.append([model, SIDES[side][0], "not run", *["-"] * (len(HEADING) - 3)])
                versions.append(f"{side}: no {missing.package}; {INSTALL[SIDES[side][1]]}")
        progress(f"{model}: first pass")
        first = {s: [w.step() for _ in range(args.batches)] for s, w in workers.items()}
        loss, norm = differences(first)
        agreed = f"first pass: losses agree to {loss:.1e} nats, gradient norms to {norm:.1e}"
        if not (loss <= LOSS and norm <= NORM):
            raise SystemExit(f"{model}: the race is void: {agreed}\n{first}")
        workers["matmul"] = Worker(
            [sys.executable, "-m", "benchmarks.race.matmul"], folder / "matmul.log"
        )
        workers["matmul"].load()
        workers["matmul"].step()  # compiles
        timed: dict[str, list[Any]] = {side: [] for side in workers}
        for number in range(args.passes * args.batches):
            progress(f"{model}: timed step {number + 1} of {args.passes * args.batches}")
            for side, worker in workers.items():
                timed[side].append(worker.step())
    finally:
        for worker in workers.values():
            worker.close()
    products = timed.pop("matmul")
    rate = max(work.MATMUL_FLOPS / s["cpu"] for s in products)
    rows, note = results(folder, model, first, timed, rate)
    versions += [w.versions for w in workers.values()]
    return rows + absent, [f"- {model} is {MODELS[model]}; {note}; {agreed}", *versions]


def progress(what: str) -> None:
    """Print a line of progress on standard error."""
    print(what, file=sys.stderr, flush=True)


HEADING = ["model", "side", "CPU s", f"x {BASE}", "wall s", "tokens/s", "peak MB", "of matmul"]
HEADING += ["compile CPU s"]


def results(
    folder: Path, model: str, first: Mapping[str, Any], timed: Mapping[str, Any], rate: float
) -> tuple[list[list[str]], str]:
    """The rows of the sides that ran, and their work; `rate`: FLOP per CPU second."""
    batches = work.batches(folder)
    flops = statistics.mean(work.useful_flops(work.decoder(folder), pairs) for pairs in batches)
    tokens = statistics.mean(sum(p.tokens for p in pairs) for pairs in batches)
    cpu = {side: per_step(steps, "cpu", len(batches)) for side, steps in timed.items()}
    rows = []
    for side, steps in timed.items():
        wall = per_step(steps, "wall", len(batches))
        ratio = f"{cpu[side] / cpu[BASE]:.2f}" if BASE in cpu else "-"
        share = f"{flops / cpu[side] / rate:.0%}" if side != "tunix" else "-"
        cells = [f"{cpu[side]:.2f}", ratio, f"{wall:.2f}", f"{tokens / wall:,.0f}"]
        more = sum(s["cpu"] for s in first[side]) - len(batches) * cpu[side]
        cells += [f"{steps[-1]['peak']:,.0f}", share, f"{max(more, 0):.1f}"]
        rows.append([model, SIDES[side][0], *cells])
    cores = os.cpu_count() or 1
    return rows, (
        f"{flops / 1e9:.1f} useful GFLOP and {tokens:,.0f} tokens a step; "
        f"matrix products {rate / 1e9:.0f} GFLOP per CPU second, {cores} cores"
    )


def main() -> int:
    """Race on every model and print one table; returns the exit code."""
    args = parse()
    rows, notes, versions = [HEADING], [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = str(args.data.resolve()) if args.data else "-"
        prepare = [sys.executable, "-m", "benchmarks.race.prepare", name, args.layout]
        subprocess.run(
            [*prepare, str(args.batches), given, *args.models], check=True, env=environment()
        )
        for model in args.models:
            found, (note, *about) = race(folder / model, model, args)
            progress(f"{table([HEADING, *found])}\n{note}")
            rows += found
            notes.append(note)
            versions += about
    text = [f"# Race on the CPU, {args.layout} layout\n", f"`{command(args)}`\n"]
    text += [table(rows) + "\n", "\n".join(notes) + "\n", "; ".join(sorted(set(versions)))]
    result = "race_cpu" if args.layout == "packed" else "race_cpu_padded"
    publish(result, "\n".join(text), args.write)
    return 0


def command(args: argparse.Namespace) -> str:
    """The command, without paths."""
    shown = {"layout": args.layout, "batches": args.batches, "passes": args.passes}
    shown |= {"microbatches": args.microbatches, "row-length": args.row_length}
    flags = " ".join(f"--{name} {value}" for name, value in shown.items())
    return f"python -m benchmarks.race_cpu {'--data PATH ' if args.data else ''}{flags}"


if __name__ == "__main__":
    sys.exit(main())
