"""The folder of a run as training leaves it, without training: for tests of the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from jaxalign.report.samples import Comparison, Measure, Sample, write_samples

HOSTILE = '<script>alert("x")</script> & [bold]b[/bold] \x1b[31m\u202e'
ENVIRONMENT = {
    "python": "3.11.7",
    "packages": {"jaxalign": "0.1.0", "jax": "0.10.2"},
    "devices": "1 x cpu",
    "git": "0123abc",
}
TRAINING = {
    "sft": {"loss": 1.5, "logps/response": -20.0},
    "dpo": {
        "loss": 0.5,
        "rewards/chosen": 0.25,
        "rewards/rejected": -0.5,
        "rewards/accuracies": 0.75,
        "rewards/margins": 0.75,
        "logps/chosen": -11.0,
        "logps/rejected": -13.0,
    },
    "kto": {"loss": 0.5, "rewards/response": 0.25, "logps/response": -11.0, "kl": 0.1},
    "bradley_terry": {"loss": 0.5, "rewards/accuracies": 0.75, "rewards/margins": 0.75},
    "plackett_luce": {"loss": 0.5, "rewards/accuracies": 0.75, "logps/responses": -9.0},
}
"""The metrics of an update, by objective."""


def lines(objective: str, updates: int = 40) -> list[dict[str, Any]]:
    """Lines of a metrics.jsonl, with a held-out evaluation at the end."""
    common = {"grad_norm": 1.0, "learning_rate": 0.01, "time/tokens_per_second": 1234.0}
    found: list[dict[str, Any]] = [
        {"step": step} | TRAINING[objective] | common for step in range(1, updates + 1)
    ]
    held_out = {f"eval/{name}": value for name, value in TRAINING[objective].items()}
    return [*found, {"step": updates} | held_out]


def write_stage(folder: Path, objective: str, *, finished: bool = True) -> None:
    """Write the folder of a stage."""
    folder.mkdir(parents=True)
    text = "".join(json.dumps(line) + "\n" for line in lines(objective))
    (folder / "metrics.jsonl").write_text(text)
    counts = {
        "kept": 4096,
        "dropped": {"empty response": 7},
        "prompt_cut": 2,
        "response_cut": {"chosen": 11},
        "eos_lost": {"chosen": 12},
    }
    data = {"updates": 40, "train": counts, "held_out": counts | {"kept": 128}}
    (folder / "data.json").write_text(json.dumps(data))
    (folder / "timings.json").write_text(json.dumps({"reading data": 3.5, "training": 61.2}))
    errors = dict.fromkeys(TRAINING[objective], 0.0625)
    recorded = {"step": 40, "examples": 128, "standard_errors": errors}
    (folder / "held_out.json").write_text(json.dumps(recorded))
    if finished:
        (folder / "model").mkdir()


def write_run(folder: Path, *objectives: str, finished: bool = True) -> Path:
    """Write the folder of a run with one stage for each objective; returns it.

    Args:
      folder: made here.
      objectives: names of objectives, which also name the stages; none: sft and dpo.
      finished: whether the last stage has a model.
    """
    names = objectives or ("sft", "dpo")
    stage = {"data": {"path": "data.jsonl"}, "optimizer": {"learning_rate": 0.0125}, "steps": 40}
    recipe = {
        "run": {"dir": str(folder), "seed": 17},
        "model": {"path": "some/model", "dtype": "float32"},
        "stages": {name: stage | {"objective": {"name": name, "beta": 0.3}} for name in names},
    }
    for name in names:
        write_stage(folder / name, name, finished=finished or name != names[-1])
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    return folder


def compare(folder: Path, *, rewards: bool = True, text: str = "a prompt") -> None:
    """Write a samples.json of six prompts, whose rewards are the lengths of the answers."""
    after = ("longer", "long", "tiny", "shore", "short", "sh")
    samples = tuple(
        Sample(text, "short", a, *((5.0, float(len(a))) if rewards else ())) for a in after
    )
    measures = (Measure("reward accuracy, pairs", "all ties", "0.875 ± 0.030", ""),)
    write_samples(folder, Comparison("sft", "dpo", samples, measures, 14.2))
