"""A run killed with SIGKILL and resumed has the same bits as the same run left alone.

    ... DTYPE

The three processes share a folder of compiled programs, as one user's runs do. The comparison is by
exported weights.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .part import arguments, check, record, turn

SAVES = 4  # checkpoints, after as many updates each


def recipe(folder: Path, name: str, dtype: str, data: str, every: int) -> Path:
    """A stage of DPO in `folder`/NAME, from `folder`/start, saved after every so many updates."""
    import yaml

    values: dict[str, Any] = {
        "run": {"dir": str(folder / name)},
        "model": {"path": str(folder / "start"), "dtype": dtype, "remat": "none"},
        "stages": {
            "dpo": {
                "objective": {"name": "dpo"},
                "data": {"path": data, "max_length": 128, "max_prompt": 64, "row_length": 256},
                "optimizer": {"learning_rate": 1.0e-4},
                "batch_size": 8,
                "steps": SAVES * every,
                "save_every": every,
            }
        },
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def command(path: Path) -> list[str]:
    """The command line of a run."""
    return [sys.executable, "-m", "jaxalign.cli", "train", str(path)]


def killed(path: Path, stage: Path) -> int:
    """Start a run and kill it after its second checkpoint; returns the checkpoints it left."""
    process = subprocess.Popen(command(path))
    while process.poll() is None and len(list(stage.glob("checkpoints/step-*.json"))) < 2:
        time.sleep(0.02)
    process.kill()
    process.wait()
    return len(list(stage.glob("checkpoints/step-*.json")))


def digest(stage: Path) -> str:
    """SHA-256 of the exported weights."""
    return hashlib.sha256((stage / "model" / "model.safetensors").read_bytes()).hexdigest()


def largest(a: Path, b: Path) -> float:
    """The largest difference of two exported models, as a share of the largest weight."""
    from safetensors.torch import load_file

    mine, theirs = (load_file(stage / "model" / "model.safetensors") for stage in (a, b))
    return max(
        float((mine[name].float() - theirs[name].float()).abs().max() / mine[name].abs().max())
        for name in mine
    )


def main() -> None:
    """Kill, resume, compare."""
    parser = arguments(__doc__)
    parser.add_argument("dtype", choices=("bfloat16", "float32"))
    args = parser.parse_args()
    from .. import common
    from ..checkpoint import make_checkpoint

    folder = args.work / f"resume-{args.dtype}"
    data = common.pairs(None, folder / "data")
    make_checkpoint(folder / "start", data, layers=1 if args.quick else 4)
    turn()
    every = 3 if args.quick else 10
    names = ("killed", "whole")
    paths = {name: recipe(folder, name, args.dtype, str(data.path), every) for name in names}
    stages = {name: folder / name / "dpo" for name in paths}
    left = killed(paths["killed"], stages["killed"])
    if (stages["killed"] / "model").exists():
        raise SystemExit("the run was over before it could be killed")
    for path in paths.values():
        subprocess.run(command(path), check=True, env=os.environ)
    same = len({digest(stage) for stage in stages.values()}) == 1
    error = 0.0 if same else largest(*stages.values())
    name = f"{args.dtype}, killed after {every * left} of {every * SAVES} updates"
    check(args.out, name, error, 0.0)
    record(args.out, "about", resume=args.dtype, same_bits=same)


if __name__ == "__main__":
    main()
