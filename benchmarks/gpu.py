"""Seconds, tokens, utilisation and memory of updates of real models on one GPU.

    python -m benchmarks.gpu [--repeats N] [--quick] [--write]

It needs python with jax, flax and optax, and no checkpoint or data: weights and tokens are random.
DPO and SLPO with a cached reference; all parameters in float32 by AdamW, or adapters of rank 16 on
a bfloat16 decoder; bfloat16 activations, full rematerialisation. Each row of the table is a process
of its own, since a device tells the peak of its memory over the whole life of a process.

Utilisation is useful FLOPs (`updates.useful_flops`) over the time of an update, against the rate of
a large bfloat16 product that the same process measures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import types
from typing import Any, NamedTuple

from .tables import publish, table

FLAGS = {
    # The products here are large and regular, for which cuBLAS has kernels; not to compile and time
    # Triton's beside them shortens compilation. What it does to the speed is not known.
    "--xla_gpu_enable_triton_gemm": "false",
}
SHARE = "0.92"  # of the GPU's memory: nothing else runs on it, and jax would take three quarters


class Case(NamedTuple):
    """A row of the table."""

    model: str  # of `shapes.SHAPES`
    lora: bool
    objective: str
    pairs: str  # of `updates.PAIRS`


TRAINED = (("Llama-3.2-1B", False), ("Pythia-2.8B", False), ("Llama-3-8B", True))
CASES = [
    Case(model, lora, objective, pairs)
    for model, lora in TRAINED
    for pairs in ("HH", "2,048")
    for objective in ("dpo", "slpo")
]
QUICK = [Case("tiny", False, "dpo", "few"), Case("tiny", True, "slpo", "few")]


def environment() -> dict[str, str]:
    """That of a case; what the user has set stands."""
    given = os.environ.get("XLA_FLAGS", "")
    flags = [f"{name}={value}" for name, value in FLAGS.items() if name not in given]
    share = {"XLA_PYTHON_CLIENT_MEM_FRACTION": SHARE}
    return share | os.environ | {"XLA_FLAGS": " ".join([given, *flags]).strip()}


def stand_in() -> types.ModuleType:
    """A module with the names of annotated_types that jaxalign imports.

    Rented GPUs come with jax, flax and optax; jaxalign's settings and objectives only annotate
    fields with these names, and nothing here reads the annotations.
    """
    module = types.ModuleType("annotated_types")
    for name in ("Ge", "Gt", "Le", "Lt", "Interval", "MinLen", "MultipleOf"):
        setattr(module, name, lambda *args, **kwargs: None)
    return module


def run_case(case: Case, repeats: int) -> None:
    """Measure a case in this process; prints one line of JSON."""
    try:
        import annotated_types  # noqa: F401
    except ImportError:
        sys.modules["annotated_types"] = stand_in()
    from .updates import measure

    print(json.dumps(measure(case, repeats)))


def measured(case: Case, repeats: int) -> dict[str, Any] | None:
    """The figures of a case from a process of its own; None where it failed, and says why."""
    argv = [sys.executable, "-m", "benchmarks.gpu", "--repeats", str(repeats)]
    argv += ["--case", json.dumps(case)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, env=environment(), check=False)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def cells(case: Case, found: dict[str, Any] | None) -> list[str]:
    """A row of the table."""
    about = [case.model, "LoRA" if case.lora else "full", case.objective, case.pairs]
    if found is None:
        return [*about, "failed", *[""] * 5]
    peak = found["peak_bytes"]
    return [
        *about,
        f"{found['seconds']:.3f}",
        f"{found['tokens'] / found['seconds']:,.0f}",
        f"{found['flops'] / found['seconds'] / 1e12:.3g}",
        f"{found['rate'] / 1e12:.3g}",
        f"{found['flops'] / found['seconds'] / found['rate']:.1%}",
        "" if peak is None else f"{peak / 2**30:.1f}",
    ]


def main() -> int:
    """Measure, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=10, help="updates that are timed")
    parser.add_argument("--quick", action="store_true", help="a tiny model, on any device")
    parser.add_argument("--write", action="store_true", help="write the table to results/")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        run_case(Case(*json.loads(args.case)), args.repeats)
        return 0
    heading = ["model", "trained", "objective", "pairs", "s/update", "tokens/s", "useful TFLOP/s"]
    rows = [[*heading, "product TFLOP/s", "utilisation", "peak GiB"]]
    about, fine = "", True
    for case in QUICK if args.quick else CASES:
        found = measured(case, args.repeats)
        rows.append(cells(case, found))
        print(*rows[-1], file=sys.stderr, flush=True)
        about, fine = found["about"] if found else about, fine and found is not None
    run = f"`python -m benchmarks.gpu --repeats {args.repeats}{' --quick' if args.quick else ''}`"
    flags = f"XLA_FLAGS `{environment()['XLA_FLAGS']}`; medians of the updates."
    publish(
        "gpu", "\n\n".join(["# Updates on one GPU", run, flags, table(rows), about]), args.write
    )
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
