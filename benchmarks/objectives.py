"""Every objective from the command line: 50 updates, and whether its target moves.

    python -m benchmarks.objectives [--data PAIRS] [--only NAME ...] [--jobs N]

`sft` trains a small random GPT-NeoX checkpoint; each other objective starts from that, each stage
by `jaxalign train`, on data of its kind (`kinds.py`). The metric that an objective should move (the
margin of rewards, unless `WATCHED` names another) must move the right way from the mean over the
first 5 updates to the mean over the last 10. Before the first update the policy is the reference,
so the loss follows from the reference's statistics; `closed_form` computes it in float64. Exits
with 1 if a loss is off by more than 1e-5, a number is not finite, or a metric moved the wrong way.
A loss that is a difference of two terms is compared on their scale: it may be close to 0.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import yaml
from rich.console import Console

from jaxalign.core.sharding import make_mesh
from jaxalign.data.pack import CachedStats
from jaxalign.objectives import OBJECTIVES
from jaxalign.recipe.read import read
from jaxalign.run.reference import cached_reference
from jaxalign.run.stage import StageRun, prepare
from jaxalign.run.tracking import read_metrics
from jaxalign.settings import Data, Mesh

from . import common
from .checkpoint import make_checkpoint
from .kinds import write_kinds, write_samples
from .tables import publish, table

UPDATES, FIRST, LAST = 50, 5, 10
TOLERANCE = 1e-5
RATES = {"sft": 2e-3, "slpo": 2e-5, "simpo": 5e-5}  # peak learning rates
RATE = 1e-4  # peak of every other objective
EPS = {"slpo": 1e-12}  # its gradients are small next to Adam's usual 1e-8
WATCHED = {
    "sft": ("logps/response", 1),
    "dco": ("logps/response", 1),
    "emo": ("logps/response", 1),
    "npo": ("logps/response", -1),
    "discopop": ("rewards/margins", -1),  # its slope at the reference; see its docstring
    "hypo_kl": ("kl", -1),  # its reference is the model before `sft`
    # Mean of pi/q over the responses that its target prefers: their share, from samples of q.
    "f_dpg": ("eval/weights/response", 1),
}
"""What should move, and which way; where nothing is said, `rewards/margins`, up."""
SAMPLED = "f_dpg"  # reads samples of the model, with their log-probabilities


class Rows(NamedTuple):
    """The first batch under the reference."""

    logp: np.ndarray  # [B, R] float64, nats
    length: np.ndarray  # [B, R] scored tokens
    sign: np.ndarray  # [B] +1 desirable, -1 undesirable; +1 without labels


class Closed(NamedTuple):
    """The value of a loss, and the size of its terms."""

    value: float
    scale: float


LOG2 = math.log(2)
AT_REFERENCE: dict[str, Callable[..., float]] = {
    **dict.fromkeys(("dpo", "spce", "robust_dpo", "sigmoid_norm", "f_dpo"), lambda **_: LOG2),
    **dict.fromkeys(("dpop", "ld_dpo", "sampo", "flex_dpo", "beta_dpo"), lambda **_: LOG2),
    **dict.fromkeys(("aot", "aot_unpaired", "bco", "implicit_prm", "d2o"), lambda **_: LOG2),
    **dict.fromkeys(("nca_pair", "bco_pair"), lambda **_: 2 * LOG2),
    **dict.fromkeys(("hinge", "apo_zero", "apo_down"), lambda **_: 1.0),
    **dict.fromkeys(("kto", "apo_zero_unpaired"), lambda **_: 0.5),
    "ipo": lambda tau, **_: 1 / (2 * tau) ** 2,
    "inpo": lambda eta, **_: 1 / (2 * eta) ** 2,
    "sppo_hard": lambda beta: 2 / (2 * beta) ** 2,
    "cal_dpo": lambda beta, lam: LOG2 + 2 * lam / (2 * beta) ** 2,
    "npo": lambda beta: 2 / beta * LOG2,
    "srpo": lambda alpha, **_: (1 + alpha) / 4,
    "plackett_luce": lambda **_: math.log(math.factorial(3)),
    "info_nca": lambda **_: math.log(3),
    "nca": lambda **_: 2 * LOG2,
}
"""The loss where the policy is the reference, if it depends on hyper-parameters alone."""


def closed_form(name: str, rows: Rows, hyper: dict[str, Any]) -> Closed | None:
    """The loss when the policy is the reference; None if there is no formula here."""
    if name in AT_REFERENCE:
        value = AT_REFERENCE[name](**hyper)
        return Closed(value, value)
    average = rows.logp / rows.length
    match name:
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
    """SLPO with all mass moved: the target of chosen is w, of rejected 0."""
    target = np.logaddexp(rows.logp[:, 0], rows.logp[:, 1])
    t = (target - np.log(-np.expm1(target))) / rows.length[:, 0]
    s = (rows.logp - np.log(-np.expm1(rows.logp))) / rows.length
    # KL(Bern(sigmoid(t)) || Bern(sigmoid(s))) of the chosen one, KL(Bern(0) || ...) of the other.
    chosen = (t - s[:, 0]) / (1 + np.exp(-t)) + np.logaddexp(0, s[:, 0]) - np.logaddexp(0, t)
    return float((chosen + np.logaddexp(0, s[:, 1])).mean() / 4)


def write_recipe(folder: Path, name: str, model: Path, data: Data) -> Path:
    """Write a recipe of one stage with the objective's name, as a user would write it."""
    optimizer = {"learning_rate": RATES.get(name, RATE), "warmup": 5}
    if name in EPS:
        optimizer["eps"] = EPS[name]
    read_as = ("path", "eval_path", "limit", "max_length", "max_prompt", "skip_empty")
    stage = {
        "objective": {"name": name},
        "data": {key: value for key in read_as if (value := getattr(data, key)) is not None},
        "optimizer": optimizer,
        "steps": UPDATES,
        "batch_size": 8,
    }
    if data.eval_path is not None:
        stage["eval_every"] = LAST
    if OBJECTIVES[name].reference == "live":
        stage["reference"] = {"mode": "live"}
    if name == "hypo_kl":
        stage["reference"] = {"path": str(folder / "start")}
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
      SystemExit: the run failed; its message is on standard error.
    """
    began = time.perf_counter()
    command = [sys.executable, "-m", "jaxalign.cli", "train", str(path)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise SystemExit(f"{path.stem}: the command failed with exit code {done.returncode}")
    return time.perf_counter() - began


def prepared_stage(path: Path, model: Path) -> StageRun:
    """The stage of a recipe as the command line prepares it."""
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    return prepare(read(str(path), []), path.stem, model, mesh, Console(quiet=True))


def first_batch(stage: StageRun, cached: CachedStats) -> Rows:
    """The reference statistics of the finished run's first batch."""
    batch = stage.loader(stage.train, cached).batch(0)
    mask = batch.mask[0, 0]
    logp = (batch.ref["logp"][0, 0].astype(np.float64) * mask).sum(-1)
    label = batch.columns["label"][0, 0] if "label" in batch.columns else np.ones(len(logp))
    return Rows(logp, mask.sum(-1), np.where(label > 0.5, 1, -1))


def pair_logps(stage: StageRun, logp: np.ndarray) -> dict[str, np.ndarray]:
    """By index of the pair, the log-probabilities of its two responses under the reference."""
    sums = np.add.reduceat(logp.astype(np.float64), stage.train.offsets[:-1])
    items = stage.train
    return {item.where: sums[2 * i : 2 * i + 2] for i, item in enumerate(items)}


def moved(name: str, metrics: Sequence[dict[str, Any]]) -> tuple[str, float, float, bool]:
    """The metric that should move, its mean at the start and at the end, and whether it moved."""
    key, sign = WATCHED.get(name, ("rewards/margins", 1))
    values = [line[key] for line in metrics if key in line]
    few = min(FIRST, max(len(values) // 2, 1))
    start, end = (
        float(np.mean(values[:few])),
        float(np.mean(values[-min(LAST, len(values) - few) :])),
    )
    return key, start, end, sign * (end - start) > 0


def report(
    name: str, metrics: Sequence[dict[str, Any]], form: Closed | None, seconds: float
) -> tuple[list[str], bool]:
    """An objective's row of the table, and whether it passes."""
    first = metrics[0]["loss"]
    finite = all(math.isfinite(v) for line in metrics for v in line.values())
    key, start, end, right = moved(name, metrics)
    good, off = finite and right and metrics[-1]["step"] == UPDATES, "-"
    if form is not None:
        error = abs(first - form.value) / form.scale
        good &= error <= TOLERANCE
        off = f"{error:.1e}"
    losses = [line["loss"] for line in metrics[-LAST:] if "loss" in line]
    cells = [name, f"{first:.6f}", off, f"{np.mean(losses):.6f}", key, f"{start:.4f}"]
    cells += [f"{end:.4f}", "yes" if right else "NO", "yes" if finite else "NO"]
    return [*cells, f"{seconds:.0f}"], good


HEADING = ["objective", "loss at 0", "off closed form by", f"loss, last {LAST}", "watched"]
HEADING += [f"first {FIRST}", f"last {LAST}", "right way", "finite", "seconds"]


def one(name: str, folder: Path, model: Path, data: Data) -> tuple[list[str], bool]:
    """Train with an objective; returns its row of the table, and whether it passes."""
    path = write_recipe(folder, name, model, data)
    seconds = train(path)
    print(f"{name}: {seconds:.0f} s", file=sys.stderr, flush=True)
    metrics = read_metrics(folder / name / name / "metrics.jsonl")
    form = None
    if OBJECTIVES[name].uses_ref and name != "hypo_kl":
        stage = prepared_stage(path, model)
        hyper = {k: p.default for k, p in OBJECTIVES[name].hyper.items()}
        with jax.set_mesh(stage.mesh):
            cached = cached_reference(stage, "train", Console(quiet=True))
        if cached is not None:
            form = closed_form(name, first_batch(stage, cached), hyper)
    return report(name, metrics, form, seconds)


def main() -> int:
    """Run every objective and print the table; returns the exit code."""
    parser = common.arguments(__doc__)
    parser.add_argument("--only", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--write", action="store_true", help="write the table to results/")
    args = parser.parse_args()
    common.start()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kinds = write_kinds(folder / "kinds", common.pairs(args.data, folder / "data"))
        make_checkpoint(folder / "start", kinds[""], layers=2)
        rows = [one("sft", folder, folder / "start", kinds[""])]
        model = folder / "sft" / "sft" / "model"
        names = [n for n in args.only if n != "sft"]
        if SAMPLED in names:
            (folder / "logps").mkdir()
            path = write_recipe(folder / "logps", "dpo", model, kinds[""])
            stage = prepared_stage(path, model)
            with jax.set_mesh(stage.mesh):
                cached = cached_reference(stage, "train", Console(quiet=True))
            assert cached is not None
            logps = pair_logps(stage, cached.ref["logp"][:])
            kinds[SAMPLED] = write_samples(folder / "kinds", kinds[""], logps)

        def run(name: str) -> tuple[list[str], bool]:
            kind = name if name in kinds else OBJECTIVES[name].layout.name
            return one(name, folder, model, kinds.get(kind, kinds[""]))

        with ThreadPoolExecutor(args.jobs) as pool:
            rows += pool.map(run, names)
    lines = table([HEADING, *(row for row, _ in rows)])
    good = all(right for _, right in rows)
    verdict = "all as it must be" if good else "NOT all as it must be"
    text = f"# Objectives\n\n{common.versions('torch')}\n\n{lines}\n\n{verdict}"
    publish("objectives", text, args.write)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
