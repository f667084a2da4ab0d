"""Shared parts of benchmarks: flags, data, versions."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
from pathlib import Path

import jax
import transformers

from jaxalign.quickstart.world import make_data
from jaxalign.run.export import environment
from jaxalign.settings import Data

PAIRS = 480
"""Pairs read from a data file: a few passes for some dozen updates."""


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """The parser of a benchmark, with the flag `--data` that all of them have."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument(
        "--data", type=Path, help="preference pairs, .jsonl or .jsonl.gz; none: a synthetic set"
    )
    return parser


def start() -> None:
    """Set full float32 on every device, and silence the progress bars of transformers."""
    jax.config.update("jax_default_matmul_precision", "highest")
    transformers.utils.logging.disable_progress_bar()


def pairs(given: Path | None, folder: Path) -> Data:
    """Settings to read the given pairs, or else the quickstart's, written to `folder`."""
    path = given or make_data(folder, seed=0, train=PAIRS, held_out=1)["pairs"]
    return Data(
        path=str(path.resolve()), limit=PAIRS, max_length=512, max_prompt=384, skip_empty=True
    )


def versions(*others: str) -> str:
    """One line: python, the packages and any others, the devices."""
    about = environment()
    packages = about["packages"] | {name: importlib.metadata.version(name) for name in others}
    listed = ", ".join(f"{name} {version}" for name, version in packages.items())
    return f"python {about['python']}, {listed}; {about['devices']}, {os.cpu_count()} CPU cores"
