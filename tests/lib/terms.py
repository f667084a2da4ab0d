"""A recipe whose stage has two terms, HyPO: DPO on pairs, and a KL divergence on answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lib import runs as h

WEIGHT = 0.25
SAMPLES = 20


def values(inputs: Path, run: Path, samples: Path, **terms: Any) -> dict[str, Any]:
    """The plain values of a recipe with one stage, `hypo`, of the terms `dpo` and `kl`."""
    recipe = h.values(inputs, run, "dpo")
    stage = recipe["stages"].pop("dpo")
    data = stage.pop("data") | {"eval_path": f"{inputs}/held_out.jsonl"}
    del stage["objective"], stage["batch_size"]
    own = {"path": str(samples), "eval_path": str(samples)}
    stage["terms"] = {
        "dpo": {"objective": {"name": "dpo"}, "data": data, "batch_size": 8},
        "kl": {
            "objective": {"name": "hypo_kl", "lam": 1.0},
            "data": data | own,
            "reference": {"mode": "live"},
            "weight": WEIGHT,
            "batch_size": 16,
        },
    }
    for name, changes in terms.items():
        stage["terms"][name] |= changes
    recipe["stages"]["hypo"] = stage
    return recipe


def write_samples(folder: Path) -> Path:
    """Write a file of sampled answers with their baselines; returns its path."""
    rows = [h.pair(i) for i in range(SAMPLES)]
    made = [{"prompt": r["prompt"], "completion": r["rejected"], "baseline": 0.5} for r in rows]
    h.write_rows(folder / "samples.jsonl", made)
    return folder / "samples.jsonl"
