"""A recipe that trains in seconds, its model and data, and the command in its own process."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import yaml
from lib.steps import one_device
from rich.console import Console
from safetensors.numpy import load_file, save_file

from jaxalign.hf.save import save_checkpoint
from jaxalign.quickstart import world
from jaxalign.recipe.read import parse
from jaxalign.run.stage import describe_model, prepare
from jaxalign.run.train import train
from jaxalign.settings import Model, Recipe

MODEL = world.model_config() | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
BATCH = 8
TRAIN, HELD_OUT = 24, 13
STEPS = {"sft": 4, "dpo": 6}


def write_inputs(folder: Path, train: int = TRAIN) -> Path:
    """Write `model/`, `pairs.jsonl` and `held_out.jsonl`; returns the folder."""
    model = folder / "model"
    world.make_tokenizer(model)
    (model / "config.json").write_text(json.dumps(MODEL))
    built = describe_model(model, Model(path=""), one_device())
    params = built.init(jax.random.key(0))
    # Four times the usual spread, so that responses and updates differ well above rounding.
    params = jax.tree.map(lambda x: x * 4 if x.ndim > 1 else x, params)
    save_checkpoint(model, params, built, source=model, dtype="float32", card="# random\n")
    for name, first, count in (("pairs", 0, train), ("held_out", train, HELD_OUT)):
        write_rows(folder / f"{name}.jsonl", [pair(i) for i in range(first, first + count)])
    return folder


def pair(i: int) -> dict[str, str]:
    """A sum with its answer and a wrong one, of several lengths, at most 16 tokens together."""
    a, b = i % 7, i // 7
    return {"prompt": f"{a}+{b}=", "chosen": f"{a + b}", "rejected": "no" * (1 + i % 3)}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def values(inputs: Path, run: Path, *stages: str, **changes: Any) -> dict[str, Any]:
    """The plain values of a recipe, by default of the stages sft and dpo.

    Args:
      inputs: folder of `write_inputs`.
      run: folder of the run.
      stages: names of objectives, which also name the stages.
      changes: dotted paths, `__` for a dot, and their values: `stages__dpo__steps=3`.
    """
    stage = {
        "data": {
            "path": f"{inputs}/pairs.jsonl",
            "max_length": 32,
            "max_prompt": 16,
            "row_length": 256,
        },
        "optimizer": {"learning_rate": 1e-2, "schedule": "constant"},
        "batch_size": BATCH,
        "save_every": 2,
    }
    recipe: dict[str, Any] = {
        "run": {"dir": str(run)},
        "model": {"path": f"{inputs}/model", "dtype": "float32", "remat": "none"},
        "stages": {
            name: json.loads(json.dumps(stage))
            | {"objective": {"name": name}, "steps": STEPS.get(name, 4)}
            for name in stages or STEPS
        },
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        at = recipe
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = value
    return recipe


def recipe(inputs: Path, run: Path, *stages: str, **changes: Any) -> Recipe:
    """The recipe of `values`, checked."""
    return parse(values(inputs, run, *stages, **changes))


def write_recipe(path: Path, values: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return str(path)


def run(recipe: Recipe, mesh: jax.sharding.Mesh) -> str:
    """Train in this process; returns what was printed."""
    out = io.StringIO()
    train(recipe, mesh, Console(file=out, width=200))
    return out.getvalue()


QUIET = Console(quiet=True)


def prepared(recipe: Recipe, name: str, mesh: jax.sharding.Mesh) -> Any:
    """A stage that starts from the recipe's own model."""
    return prepare(recipe, name, Path(recipe.model.path), mesh, QUIET)


def tensors(folder: Path) -> dict[str, Any]:
    """The tensors of a Hugging Face folder with one file of weights."""
    return load_file(folder / "model.safetensors")


def sealed(stage: Path) -> list[int]:
    """The updates whose checkpoints are complete, oldest first."""
    return sorted(int(p.stem[5:]) for p in (stage / "checkpoints").glob("step-*.json"))


def repeated(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The metrics that do not depend on the clock or on restarts."""
    own = ("time/", "compiles")
    return [{k: v for k, v in line.items() if not k.startswith(own)} for line in lines]


def metrics(stage: Path) -> list[dict[str, Any]]:
    """The lines of a stage's metrics.jsonl."""
    return [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]


def command(*args: str) -> list[str]:
    """The command line of the program in a process of its own."""
    return [sys.executable, "-m", "jaxalign.cli", *args]


def environment(cache: Path | str, devices: int = 1, **more: str) -> dict[str, str]:
    """Environment of a process: no torch, a number of CPU devices, a cache for every program."""
    hides_torch = str(Path(__file__).parent / "without_torch")
    paths = [hides_torch, *filter(None, [os.environ.get("PYTHONPATH")])]
    return (
        os.environ
        | {
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "COLUMNS": "200",
            "PYTHONPATH": os.pathsep.join(paths),
        }
        | more
    )


def cli(*args: str, cache: Path | str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the program in a process of its own, to its end."""
    return subprocess.run(
        command(*args),
        env=environment(cache),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        **options,
    )


def replaced(recipe: Recipe, folder: Path) -> Recipe:
    """The same recipe in another folder."""
    return dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, dir=str(folder)))


def copy_folder(source: Path, target: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(source, target))


def rewind(stage: Path) -> None:
    """Leave a finished stage as it was after its last checkpoint but one."""
    shutil.rmtree(stage / "model")
    last = sealed(stage)[-1]
    (stage / "checkpoints" / f"step-{last:08d}.json").unlink()
    shutil.rmtree(stage / "checkpoints" / f"step-{last:08d}")


def edit_tensors(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change the weights of a Hugging Face folder in place."""
    changed = tensors(folder)
    edit(changed)
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
