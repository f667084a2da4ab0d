"""Write a stage's model as a Hugging Face folder, with a card that says how it was made."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

from .checkpoint import Checkpoints
from .config import dump
from .errors import UserError
from .hf.save import save_checkpoint
from .optim import optimizer
from .stage import Prepared
from .state import abstract_state
from .step import TrainState

PACKAGES = ("jaxalign", "jax", "flax", "optax", "orbax-checkpoint", "transformers", "datasets")


def environment() -> dict[str, Any]:
    """Versions, devices and the git commit of the working folder, if it is in a repository."""
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "python": platform.python_version(),
        "packages": {p: importlib.metadata.version(p) for p in PACKAGES},
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "git": git.stdout.strip() or None,
    }


def newest_state(prepared: Prepared) -> tuple[int, TrainState]:
    """The newest training checkpoint of a stage: updates made, and the state after them.

    Raises:
      UserError: the stage has none, or it is damaged.
    """
    stage = prepared.stage
    tx = optimizer(stage.optimizer, prepared.updates)
    abstract = abstract_state(prepared.model, tx, prepared.task.objective)
    folder = prepared.folder / "checkpoints"
    with contextlib.closing(Checkpoints(folder, stage.keep)) as checkpoints:
        found = checkpoints.restore(abstract)
    if found is None:
        raise UserError(f"{folder}: no checkpoint of stage {prepared.name}; train first")
    return found


def write_checkpoint(prepared: Prepared, folder: Path) -> int:
    """Export the newest training checkpoint of a stage.

    Args:
      prepared: the stage.
      folder: to write; it must not exist.

    Returns:
      The number of updates that the checkpoint has seen.

    Raises:
      UserError: the folder exists, or the stage has no checkpoint.
    """
    if folder.exists():
        raise UserError(f"--out: {folder} exists; choose a new folder")
    step, state = newest_state(prepared)
    write_model(prepared, state.params, folder, {})
    return step


def write_model(prepared: Prepared, params: Any, folder: Path, metrics: dict[str, float]) -> None:
    """Export parameters with the starting checkpoint's config and tokenizer, and a model card.

    Args:
      prepared: the stage they belong to.
      params: the policy's parameters.
      folder: a new Hugging Face folder; it appears whole or not at all.
      metrics: held-out metrics for the card.
    """
    save_checkpoint(
        folder,
        params,
        prepared.model,
        source=prepared.source,
        dtype=prepared.recipe.model.export_dtype,
        card=model_card(prepared, metrics),
    )


def model_card(prepared: Prepared, metrics: dict[str, float]) -> str:
    """The README.md of an exported model."""
    objective = prepared.task.objective
    hyper = "".join(f", {k} = {v}" for k, v in prepared.task.hyper.items())
    rows = "".join(f"| {k} | {v:.6g} |\n" for k, v in metrics.items())
    held_out = f"\n## Held-out metrics\n\n| metric | value |\n|---|---|\n{rows}" if rows else ""
    about = environment()
    versions = ", ".join(f"{k} {v}" for k, v in about["packages"].items())
    return f"""---
library_name: transformers
tags: [jaxalign, {objective.name}]
---
# {Path(prepared.recipe.run.dir).name}: {prepared.name}

Made by jaxalign from `{prepared.recipe.model.path}` with `{objective.name}`{hyper}.
Source of the objective: {objective.source}.
{held_out}
## Recipe

```yaml
{dump(prepared.recipe)}```

Versions: {versions}; python {about["python"]}; {about["devices"]}; git {about["git"]}.
"""
