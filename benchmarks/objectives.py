"""Every objective from the command line: its loss at step 0, 50 updates, every number finite.

    python -m benchmarks.objectives [--data PAIRS]

`sft` trains a small random GPT-NeoX checkpoint; each other objective starts from that, each stage
by `jaxalign train`. The loss before the first update follows from the reference's own statistics,
as the policy still is the reference; it is computed here in float64. Exits with 1 if a loss is off
by more than 1e-5, or a number is not finite. A loss that is a difference of two is compared on
the scale of these: it may be next to 0.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import yaml
from rich.console import Console

from jaxalign.config import read
from jaxalign.objectives import OBJECTIVES
from jaxalign.settings import Data, Mesh
from jaxalign.sharding import make_mesh
from jaxalign.stage import cached_reference, prepare
from jaxalign.tracking import read_metrics

from . import common
from .checkpoint import make_checkpoint
from .tables import table

UPDATES, LAST = 50, 10
TOLERANCE = 1e-5
RATES = {"sft": 2e-3, "slpo": 2e-5, "simpo": 5e-5}  # peak learning rates
RATE = 1e-4  # of the others
EPS = {"slpo": 1e-12}  # its gradients are small beside Adam's usual 1e-8


class Rows(NamedTuple):
    """The first batch under the reference."""

    logp: np.ndarray  # [B, R] float64, nats
    length: np.ndarray  # [B, R] scored tokens
    sign: np.ndarray  # [B] +1 desirable, -1 undesirable; +1 where nothing is labelled


class Closed(NamedTuple):
    """What a loss must be, and the size of the terms that it is made of."""

    value: float
    scale: float


def closed_form(name: str, rows: Rows, hyper: dict[str, Any]) -> Closed | None:
    """An objective's loss where the policy is the reference; None where none is written here."""
    average = rows.logp / rows.length
    match name:
        case "dpo" | "bco":
            value = math.log(2)
        case "bco_pair":
            value = 2 * math.log(2)
        case "kto":
            value = 0.5
        case "simpo":
            margin = average[:, 0] - average[:, 1] - hyper["gamma_beta_ratio"]
            value = float(np.logaddexp(0, -hyper["beta"] * margin).mean())
        case "bnf":
            return Closed(float((-rows.sign * average[:, 0]).mean()), float(-average.mean()))
        case "bnf_pair":
            return Closed(float((average[:, 1] - average[:, 0]).mean()), float(-average.mean()))
        case "slpo":
            value = slpo(rows)
        case _:
            return None
    return Closed(value, value)


def slpo(rows: Rows) -> float:
    """SLPO with all mass moved: the chosen response's target is w, the rejected one's is 0."""
    target = np.logaddexp(rows.logp[:, 0], rows.logp[:, 1])
    t = (target - np.log(-np.expm1(target))) / rows.length[:, 0]
    s = (rows.logp - np.log(-np.expm1(rows.logp))) / rows.length
    # KL(Bern(sigmoid(t)) || Bern(sigmoid(s))) of the chosen one, KL(Bern(0) || ...) of the other.
    chosen = (t - s[:, 0]) / (1 + np.exp(-t)) + np.logaddexp(0, s[:, 0]) - np.logaddexp(0, t)
    return float((chosen + np.logaddexp(0, s[:, 1])).mean() / 4)


def write_recipe(folder: Path, name: str, model: Path, data: Data) -> Path:
    """A recipe of one stage, named as its objective, as a user would write it."""
    optimizer = {"learning_rate": RATES.get(name, RATE), "warmup": 5}
    if name in EPS:
        optimizer["eps"] = EPS[name]
    read_as = ("path", "limit", "max_length", "max_prompt", "skip_empty")
    stage = {
        "objective": {"name": name},
        "data": {key: getattr(data, key) for key in read_as},
        "optimizer": optimizer,
        "steps": UPDATES,
        "batch_size": 8,
    }
    recipe = {
        "run": {"dir": str(folder / name)},
        "model": {"path": str(model), "dtype": "float32", "remat": "none"},
        "stages": {name: stage},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def train(path: Path) -> float:
    """Run a recipe from the command line; the seconds it took.

    Raises:
      SystemExit: it failed; its own words are on standard error.
    """
    began = time.perf_counter()
    command = [sys.executable, "-m", "jaxalign.cli", "train", str(path)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise SystemExit(f"{path.stem}: the command failed with exit code {done.returncode}")
    return time.perf_counter() - began


def first_batch(path: Path, model: Path) -> Rows | None:
    """What the finished run's reference pass says of its first batch; None if it has none."""
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        prepared = prepare(read(str(path), []), path.stem, model, mesh, Console(quiet=True))
        ref = cached_reference(prepared, "train")
    if ref is None:
        return None
    batch = prepared.loader(prepared.train, ref).batch(0)
    mask = batch.mask[0, 0]
    logp = (batch.ref["logp"][0, 0].astype(np.float64) * mask).sum(-1)
    label = batch.columns["label"][0, 0] if "label" in batch.columns else np.ones(len(logp))
    return Rows(logp, mask.sum(-1), np.where(label > 0.5, 1, -1))


def report(
    name: str, metrics: Sequence[dict[str, Any]], form: Closed | None, seconds: float
) -> tuple[list[str], bool]:
    """An objective's row of the table, and whether all is as it must be."""
    first = metrics[0]["loss"]
    finite = all(math.isfinite(v) for line in metrics for v in line.values())
    good, wanted, off = finite and metrics[-1]["step"] == UPDATES, "-", "-"
    if form is not None:
        error = abs(first - form.value) / form.scale
        good &= error <= TOLERANCE
        wanted, off = f"{form.value:.7f}", f"{error:.1e}"
    cells = [name, f"{first:.7f}", wanted, off, f"{metrics[-1]['loss']:.4f}"]
    for key in ("loss", "rewards/accuracies", "rewards/margins"):
        values = [line[key] for line in metrics[-LAST:] if key in line]
        cells.append(f"{np.mean(values):.4f}" if values else "-")
    return [*cells, "yes" if finite else "NO", f"{seconds:.0f}"], good


def main() -> int:
    """Run them all, print the table; the exit code."""
    args = common.arguments(__doc__).parse_args()
    common.start()
    last = f"mean of {LAST}"
    rows = [["objective", "loss at 0", "closed form", "off by", f"loss at {UPDATES}", last]]
    rows[0] += [f"accuracy, {last}", f"margin, {last}", "finite", "seconds"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = common.pairs(args.data, folder / "data")
        make_checkpoint(folder / "start", data, layers=2)
        seconds = train(write_recipe(folder, "sft", folder / "start", data))
        metrics = read_metrics(folder / "sft" / "sft" / "metrics.jsonl")
        row, good = report("sft", metrics, None, seconds)
        rows.append(row)
        model = folder / "sft" / "sft" / "model"
        seen: dict[type, Rows] = {}
        # Those with a reference first: it tells what the others' first batch is like, too.
        for objective in sorted(OBJECTIVES.values(), key=lambda o: not o.uses_ref):
            if objective.name == "sft":
                continue
            path = write_recipe(folder, objective.name, model, data)
            seconds = train(path)
            batch = first_batch(path, model) or seen.get(objective.data)
            metrics = read_metrics(folder / objective.name / objective.name / "metrics.jsonl")
            hyper = {k: p.default for k, p in objective.hyper.items()}
            form = None
            if batch is not None:
                seen[objective.data] = batch
                form = closed_form(objective.name, batch, hyper)
            row, as_it_must = report(objective.name, metrics, form, seconds)
            rows.append(row)
            good &= as_it_must
    print(f"{common.versions('torch')}\n\n{table(rows)}\n")
    print("all as it must be" if good else f"OFF by more than {TOLERANCE}, or not finite")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
