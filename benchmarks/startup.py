"""Time to start: imports, and the quickstart up to its first updates.

    python -m benchmarks.startup [--processes N] [--write]

Every figure is the median over fresh processes. The quickstart's first update compiles the step
and everything before it; with a warm cache (`run.compile_cache`) it reads what an earlier process
compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .tables import publish, table

ROOT = Path(__file__).parents[1]
MODULES = ("jaxalign", "jaxalign.objectives", "jaxalign.cli", "jaxalign.run.train")
PHASES = ("import", "data, model, state", "first update", "second update")
TIMED_IMPORT = """\
import json, time
wall, cpu = time.perf_counter(), time.process_time()
import {}
print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]))
"""
Seconds = tuple[float, float]
"""Wall seconds and CPU seconds."""


class Clock:
    """Times phases one after another."""

    def __init__(self):
        self.laps: dict[str, Seconds] = {}
        self._since = time.perf_counter(), time.process_time()

    def lap(self, name: str) -> None:
        """The phase up to now."""
        now = time.perf_counter(), time.process_time()
        self.laps[name] = (now[0] - self._since[0], now[1] - self._since[1])
        self._since = now


def quickstart(folder: str, cache: str) -> None:
    """Two updates of the quickstart's first stage in this process; prints the laps as JSON."""
    clock = Clock()
    import jax
    from rich.console import Console

    from jaxalign.core.sharding import make_mesh, put_batch
    from jaxalign.quickstart.start import make_world
    from jaxalign.recipe.read import read
    from jaxalign.run.stage import prepare
    from jaxalign.settings import Mesh
    from jaxalign.update.step import Fixed

    from .steps import update_and_state

    clock.lap(PHASES[0])
    if cache:
        jax.config.update("jax_compilation_cache_dir", cache)
    recipe = read("quickstart", ["--run.dir", folder])
    mesh = make_mesh(Mesh())
    with jax.set_mesh(mesh):
        make_world(recipe, mesh)
        source = Path(recipe.locate(recipe.model.path))
        stage = prepare(recipe, "sft", source, mesh, Console(quiet=True))
        update, state = update_and_state(stage, stage.updates)
        batches = stage.loader(stage.train).batches(0, 2)
        clock.lap(PHASES[1])
        for phase in PHASES[2:]:
            batch = put_batch(next(batches), mesh)
            state, _ = jax.block_until_ready(update(state, [batch], Fixed()))
            clock.lap(phase)
    print(json.dumps(clock.laps))


def child(*argv: str) -> str:
    """What a fresh process of this interpreter prints last.

    Raises:
      SystemExit: it failed.
    """
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, *argv],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout.splitlines()[-1]


def row(name: str, seconds: list[Seconds]) -> list[str]:
    """A row of the table: medians over the processes."""
    wall, cpu = (statistics.median(column) for column in zip(*seconds, strict=True))
    return [name, f"{cpu:.2f}", f"{wall:.2f}"]


def main() -> int:
    """Start many processes, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write the table to results/")
    args = parser.parse_args()
    rows = [["what", "CPU s", "wall s"]]
    for module in MODULES:
        timed = [
            json.loads(child("-c", TIMED_IMPORT.format(module))) for _ in range(args.processes)
        ]
        rows.append(row(f"import {module}", timed))
    with tempfile.TemporaryDirectory() as name:
        folder, cache = Path(name), str(Path(name) / "cache")
        start = "import sys; from benchmarks.startup import quickstart as q; q(*sys.argv[1:])"
        runs = {
            "cold": [(str(folder / f"cold{i}"), "") for i in range(args.processes)],
            "warm": [(str(folder / f"warm{i}"), cache) for i in range(args.processes + 1)],
        }
        for which, given in runs.items():
            laps = [json.loads(child("-c", start, *argv)) for argv in given]
            laps = laps[-args.processes :]  # the first with a cache fills it
            rows += [row(f"quickstart, {which}: {p}", [lap[p] for lap in laps]) for p in PHASES]
    parts = ["# Starting", f"`python -m benchmarks.startup --processes {args.processes}`"]
    versions = "from benchmarks.common import versions; print(versions())"
    publish("startup", "\n\n".join([*parts, table(rows), child("-c", versions)]), args.write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
