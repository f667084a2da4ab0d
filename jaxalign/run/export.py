"""Write a stage's model as a Hugging Face folder, with a card that says how it was made."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any, cast

import jax
from rich.console import Console
from rich.text import Text

from ..data.encode import RENDERED
from ..errors import UserError
from ..hf.card import CONVERSATIONAL
from ..hf.peft import save_adapter
from ..hf.rounding import Rounding, rounding
from ..hf.save import save_checkpoint
from ..models.decoder import Params
from ..recipe.read import dump
from ..update.forward import Task
from ..update.state import TrainState
from .best import exported_update
from .checkpoint import Checkpoints
from .ledger import accepted_changes
from .stage import StageRun
from .weights import fixed_weights

EXACT = 0.01
"""Share of the change of the weights that may be rounded away without a word in the log."""
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


def exported_state(stage: StageRun) -> TrainState:
    """The training state after the exported update of a stage, or else after its newest one.

    Raises:
      UserError: the stage has no checkpoint, or it is damaged.
    """
    found = exported_update(stage.folder)
    if found is None:
        return newest_state(stage)[1]
    folder = stage.folder / "checkpoints"
    with contextlib.closing(Checkpoints(folder, stage.settings.keep)) as checkpoints:
        return checkpoints.restore_step(found.update, stage.state_spec)


def newest_state(stage: StageRun) -> tuple[int, TrainState]:
    """The newest training checkpoint of a stage: updates made, and the state after them.

    Raises:
      UserError: the stage has none, or it is damaged.
    """
    folder = stage.folder / "checkpoints"
    with contextlib.closing(Checkpoints(folder, stage.settings.keep)) as checkpoints:
        found = checkpoints.restore(stage.state_spec)
    if found is None:
        raise UserError(f"{folder}: no checkpoint of stage {stage.name}; train first")
    return found


def write_checkpoint(
    stage: StageRun, folder: Path, console: Console, *, adapter: bool = False
) -> int:
    """Export the newest training checkpoint of a stage.

    Args:
      stage: the stage.
      folder: the folder to write; it must not exist.
      console: where to print.
      adapter: write the adapters alone, not merged.

    Returns:
      The number of updates that the checkpoint has seen.

    Raises:
      UserError: the folder exists, or the stage has no checkpoint, or no adapters.
    """
    if adapter and stage.adapted is None:
        raise UserError(f"--adapter: stage {stage.name} has no `lora`; leave the flag out")
    if folder.exists():
        raise UserError(f"--out: {folder} exists; choose a new folder")
    step, state = newest_state(stage)
    if adapter:
        write_adapter(stage, state.params, folder, {})
    else:
        write_model(stage, state.params, fixed_weights(stage).base, folder, {}, console)
    return step


def write_adapter(
    stage: StageRun, params: Params, folder: Path, metrics: dict[str, float], *, note: str = ""
) -> None:
    """Export adapters as PEFT keeps them, with a model card; arguments as `write_model`."""
    assert stage.adapted is not None
    card = model_card(stage, metrics, "peft", note=note)
    save_adapter(folder, params, stage.adapted, base=_base_name(stage), card=card)


def _base_name(stage: StageRun) -> str:
    """Where others find the stage's starting checkpoint: its name on the hub, or its folder."""
    path = stage.recipe.locate(stage.recipe.model.path)
    first = stage.name == next(iter(stage.recipe.training))
    on_hub = first and not Path(path).expanduser().is_dir()
    return path if on_hub else str(stage.source.absolute())


def write_model(
    stage: StageRun,
    params: Params,
    base: Params | None,
    folder: Path,
    metrics: dict[str, float],
    console: Console,
    *,
    note: str = "",
) -> None:
    """Export parameters with the starting checkpoint's config and tokenizer, and a model card.

    It prints, and writes to the card, how much of the training the dtype of the export rounds away.

    Args:
      stage: the stage they belong to.
      params: the trained parameters.
      base: the weights that adapters are merged into; None if all parameters were trained.
      folder: a new Hugging Face folder; it appears whole or not at all.
      metrics: held-out metrics for the card.
      console: where to print.
      note: a clause about the parameters for the card.
    """
    if stage.adapted is not None and base is not None:
        params = stage.adapted.merged(base, params)
    dtype = stage.recipe.model.export_dtype
    rounded = rounding(params, stage.model, source=stage.source, dtype=dtype)
    if rounded and abs(rounded.kept - 1) > EXACT:
        text = f"{stage.name}: the export in {rounded}; set model.export_dtype to float32 for all"
        console.print(Text(text), soft_wrap=True)
    save_checkpoint(
        folder,
        params,
        stage.model,
        source=stage.source,
        dtype=dtype,
        card=model_card(stage, metrics, rounded=rounded, note=note),
        pad=_pad(stage),
        stops=() if stage.model.spec.scores else stage.encoder.all_stops(),
        template=stage.encoder.template,
    )


def _pad(stage: StageRun) -> tuple[str, int] | None:
    """The token that pads what a reward model scores, and its id; None for a language model."""
    if not stage.model.spec.scores:
        return None
    return str(stage.tokenizer.pad_token), cast(int, stage.tokenizer.pad_token_id)


def _with_hyper(task: Task) -> str:
    """An objective with its hyper-parameters, and as a term with its weight."""
    values = [f"{k} = {v}" for k, v in task.hyper.items()]
    if not task.term:
        return ", ".join([f"`{task.objective.name}`", *values])
    hyper = f" ({', '.join(values)})" if values else ""
    return f"{task.weight:g} x `{task.objective.name}`{hyper}"


def model_card(
    stage: StageRun,
    metrics: dict[str, float],
    library: str = "transformers",
    *,
    rounded: Rounding | None = None,
    note: str = "",
) -> str:
    """The README.md of an exported model.

    Args:
      stage: the stage that trained it.
      metrics: held-out metrics.
      library: name of the library that loads it.
      rounded: effect of the dtype of the export; None: no effect.
      note: a clause about the parameters.
    """
    tasks = [term.task for term in stage.terms]
    made = " + ".join(map(_with_hyper, tasks))
    sources = "; ".join(dict.fromkeys(task.objective.source for task in tasks))
    rows = "".join(f"| {k} | {v:.6g} |\n" for k, v in metrics.items())
    note = f"{note[:1].upper()}{note[1:]}.\n" if note else ""
    note += f"The export in {rounded}.\n" if rounded else ""
    if library == "peft":
        note += "Metrics are of `model`: the adapters merged into the base, and rounded.\n"
    for entry in accepted_changes(stage.folder):
        names = ", ".join(change.name for change in entry.changes)
        note += f"Continued on {entry.when} with changed inputs: {names}.\n"
    held_out = f"\n## Held-out metrics\n\n| metric | value |\n|---|---|\n{rows}" if rows else ""
    about = environment()
    tags = ["jaxalign", *dict.fromkeys(task.objective.name for task in tasks)]
    if any(term.train.counts.noted.get(RENDERED) for term in stage.terms):
        tags.append(CONVERSATIONAL)
    versions = ", ".join(f"{k} {v}" for k, v in about["packages"].items())
    return f"""---
library_name: {library}
tags: [{", ".join(tags)}]
---
# {Path(stage.recipe.run.dir).name}: {stage.name}

Made by jaxalign from `{stage.recipe.model.path}` with {made}.
Source of the objective: {sources}.
{note}{held_out}
## Recipe

```yaml
{dump(stage.recipe)}```

Versions: {versions}; python {about["python"]}; {about["devices"]}; git {about["git"]}.
"""
