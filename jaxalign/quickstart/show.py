"""What the quickstart shows: answers before and after alignment, with their true reward."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import jax
from jax.sharding import Mesh
from rich.console import Console

from ..collect.sample import Sampling, answer
from ..core.sharding import batch_shards
from ..data.loader import Loader
from ..data.tokenize import load_examples
from ..hf import load
from ..objectives import OBJECTIVES
from ..report.metrics import read_metrics
from ..report.page import Estimate, Report, evaluate_answers, render_text, write_report
from ..run.evaluate import evaluator
from ..run.stage import open_model
from ..run.train import model_folder
from ..settings import Data, Recipe
from ..update.forward import Task
from . import world

LONGEST = 64  # tokens of a sampled answer; the world's answers are at most 40 bytes


def show(recipe: Recipe, mesh: Mesh, console: Console, seconds: float) -> Path:
    """Compare the first stage's model with the last's; print and write the report.

    Args:
      recipe: of a finished run with a synthetic world.
      mesh: of all devices.
      console: where to print.
      seconds: that the training took.

    Returns:
      The path of the page.
    """
    began = time.monotonic()
    names = list(recipe.stages)
    before, after = (model_folder(recipe, name) for name in (names[0], names[-1]))
    held_out = Path(recipe.world_dir) / "held_out.jsonl"
    prompts = [json.loads(line)["prompt"] for line in held_out.read_text().splitlines()]
    how = Sampling(model="", max_new=LONGEST, dtype="float32", seed=recipe.run.seed, batch_size=256)
    metrics = {name: read_metrics(Path(recipe.run.dir) / name / "metrics.jsonl") for name in names}
    report = Report(
        title=f"{recipe.run.dir}: {names[0]} (before) and {names[-1]} (after)",
        summary=evaluate_answers(
            prompts,
            answer(before, how, mesh, prompts),
            answer(after, how, mesh, prompts),
            world.reward,
        ),
        accuracy=share(metrics[names[-1]][-1]["eval/rewards/accuracies"], len(prompts)),
        ranking_before=ranking(recipe, before, mesh),
        ranking_after=ranking(recipe, after, mesh),
        metrics=metrics,
        exported=after,
        timings={"training": seconds, "sampling": time.monotonic() - began},
    )
    path = write_report(Path(recipe.run.dir) / "report", report)
    console.print(render_text(report))
    console.print(f"report: {path}")
    return path


def share(mean: float, count: int) -> Estimate:
    """The mean of `count` values of 0 or 1, with its standard error."""
    return Estimate(mean, math.sqrt(mean * (1 - mean) / count))


def ranking(recipe: Recipe, folder: Path, mesh: Mesh) -> Estimate:
    """Share of held-out pairs whose chosen response has more log-probability per token."""
    model = open_model(folder, recipe.model, mesh)
    examples = load_examples(
        Data(path=""),
        f"{recipe.world_dir}/held_out.jsonl",
        "",
        load.load_tokenizer(folder),
        "Pairs",
        seed=recipe.run.seed,
    )
    shards = batch_shards(mesh)
    loader = Loader(
        examples,
        batch_size=64 * shards,
        microbatches=1,
        shards=shards,
        row_length=512,
        shapes=2,
        seed=0,
    )
    with jax.set_mesh(mesh):
        # SimPO's reward is the log-probability per token, times a positive number.
        run = evaluator(Task(OBJECTIVES["simpo"], {}, model.forward), mesh)
        metrics = run(load.load_params(folder, model), None, loader.sequential())
    return share(metrics["rewards/accuracies"], len(examples))
