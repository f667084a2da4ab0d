"""The checkpoints and batches of the race, made on the CPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from .part import arguments, record

BATCHES = 2


def main() -> None:
    """Write a folder for each model."""
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("models", nargs="+")
    args = parser.parse_args()
    folder = args.work / "race"
    shutil.rmtree(folder, ignore_errors=True)
    given, name = ("-", "random") if args.data is None else (str(args.data.resolve()), "given")
    layout, batches = ("packed", 1) if args.quick else ("gpu", BATCHES)
    command = [sys.executable, "-m", "benchmarks.race.prepare", str(folder), layout, str(batches)]
    cpu = os.environ | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([*command, given, *args.models], check=True, env=cpu)
    record(args.out, "about", race=args.models, pairs=name)


if __name__ == "__main__":
    main()
