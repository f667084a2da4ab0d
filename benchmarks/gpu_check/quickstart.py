"""The main job: the quickstart through the command line, with its report."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

from .part import arguments, record, turn

SMALL = "--world.train 64 --world.held-out 8"
SMALL += "".join(f" --stages.{s}.steps 2 --stages.{s}.optimizer.warmup 0" for s in ("sft", "slpo"))


def main() -> None:
    """Run it and keep the report."""
    args = arguments(__doc__).parse_args()
    folder = args.work / "quickstart"
    command = [sys.executable, "-m", "jaxalign.cli", "train", "quickstart"]
    command += ["--run.dir", str(folder), *(SMALL.split() if args.quick else ())]
    turn()
    began = time.monotonic()
    printed = args.out.with_suffix(".txt")  # kept even if the part is cut
    with printed.open("w") as file:
        subprocess.run(command, stdout=file, check=True, env=os.environ)
    seconds = time.monotonic() - began
    kept = shutil.copytree(folder / "report", args.out.with_suffix(""), dirs_exist_ok=True)
    for name in ("sft", "slpo"):
        shutil.copy(folder / name / "metrics.jsonl", kept / f"{name}.jsonl")
    lines = printed.read_text(encoding="utf-8").splitlines()
    found = [line for line in lines if "±" in line or line.startswith("time:")]
    record(args.out, "main job", seconds=round(seconds, 1), report=found)


if __name__ == "__main__":
    main()
