"""Write a stage's model as a Hugging Face folder, with a card that says how it was made."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any, cast

import jax

from ..errors import UserError
from ..hf.peft import save_adapter
from ..hf.save import save_checkpoint
from ..recipe.read import dump
from ..update.optimizer import optimizer
from ..update.state import abstract_state
from ..update.step import TrainState
from .checkpoint import Checkpoints
from .stage import Prepared, frozen_params

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
    model, objective = prepared.adapted or prepared.model, prepared.task.objective
    abstract = abstract_state(model, tx, objective, moving=prepared.moving)
    folder = prepared.folder / "checkpoints"
    with contextlib.closing(Checkpoints(folder, stage.keep)) as checkpoints:
        found = checkpoints.restore(abstract)
    if found is None:
        raise UserError(f"{folder}: no checkpoint of stage {prepared.name}; train first")
    return found


def write_checkpoint(prepared: Prepared, folder: Path, *, adapter: bool = False) -> int:
    """Export the newest training checkpoint of a stage.

    Args:
      prepared: the stage.
      folder: to write; it must not exist.
      adapter: write the adapters alone, not merged.

    Returns:
      The number of updates that the checkpoint has seen.

    Raises:
      UserError: the folder exists, or the stage has no checkpoint, or no adapters.
    """
    if adapter and prepared.adapted is None:
        raise UserError(f"--adapter: stage {prepared.name} has no `lora`; leave the flag out")
    if folder.exists():
        raise UserError(f"--out: {folder} exists; choose a new folder")
    step, state = newest_state(prepared)
    if adapter:
        write_adapter(prepared, state.params, folder, {})
    else:
        write_model(prepared, state.params, frozen_params(prepared), folder, {})
    return step


def write_adapter(prepared: Prepared, params: Any, folder: Path, metrics: dict[str, float]) -> None:
    """Export adapters as PEFT keeps them, with a model card; arguments as `write_model`."""
    assert prepared.adapted is not None
    card = model_card(prepared, metrics, "peft")
    save_adapter(folder, params, prepared.adapted, base=_base_name(prepared), card=card)


def _base_name(prepared: Prepared) -> str:
    """Where others find the stage's starting checkpoint: its name on the hub, or its folder."""
    path = prepared.recipe.locate(prepared.recipe.model.path)
    first = prepared.name == next(iter(prepared.recipe.stages))
    on_hub = first and not Path(path).expanduser().is_dir()
    return path if on_hub else str(prepared.source.absolute())


def write_model(
    prepared: Prepared, params: Any, frozen: Any, folder: Path, metrics: dict[str, float]
) -> None:
    """Export parameters with the starting checkpoint's config and tokenizer, and a model card.

    Args:
      prepared: the stage they belong to.
      params: what was trained.
      frozen: what adapters are merged into; None where all parameters were trained.
      folder: a new Hugging Face folder; it appears whole or not at all.
      metrics: held-out metrics for the card.
    """
    if prepared.adapted is not None:
        params = prepared.adapted.merged(frozen, params)
    save_checkpoint(
        folder,
        params,
        prepared.model,
        source=prepared.source,
        dtype=prepared.recipe.model.export_dtype,
        card=model_card(prepared, metrics),
        pad=_pad(prepared),
    )


def _pad(prepared: Prepared) -> tuple[str, int] | None:
    """The token that pads what a reward model scores, and its id; None for a language model."""
    if not prepared.model.config.scores:
        return None
    return str(prepared.tokenizer.pad_token), cast(int, prepared.tokenizer.pad_token_id)


def model_card(prepared: Prepared, metrics: dict[str, float], library: str = "transformers") -> str:
    """The README.md of an exported model, for the library that loads it."""
    objective = prepared.task.objective
    hyper = "".join(f", {k} = {v}" for k, v in prepared.task.hyper.items())
    rows = "".join(f"| {k} | {v:.6g} |\n" for k, v in metrics.items())
    held_out = f"\n## Held-out metrics\n\n| metric | value |\n|---|---|\n{rows}" if rows else ""
    about = environment()
    versions = ", ".join(f"{k} {v}" for k, v in about["packages"].items())
    return f"""---
library_name: {library}
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
