"""The result of the quickstart: answers before and after alignment, with their true rewards."""

from __future__ import annotations

import math
import time
from pathlib import Path

import jax
from jax.sharding import Mesh
from rich.console import Console

from ..collect.sample import Sampling, sample
from ..core.layouts import PAIRS
from ..core.sharding import batch_shards
from ..data.ask import prompt_rows
from ..data.encode import Encoder
from ..data.loader import Loader
from ..data.tokenize import load_examples
from ..files import first_process
from ..hf import load
from ..hf.tokenizer import load_tokenizer
from ..objectives import OBJECTIVES
from ..recipe.schema import objective_settings
from ..report import terminal, write_report
from ..report.read import read_run
from ..report.samples import Comparison, Estimate, Measure, with_rewards, write_samples
from ..run.evaluate import evaluator
from ..run.stage import describe_model
from ..run.train import model_folder
from ..settings import Data, Recipe
from ..update.forward import Task
from . import world

LONGEST = 64  # tokens of a sampled answer; the world's answers are at most 40 bytes


def answers_scored(recipe: Recipe) -> bool:
    """Whether a run ends in a model whose answers have a true reward: one of a synthetic world."""
    last = list(recipe.training.values())[-1].goals().get("")
    return (
        recipe.world is not None and last is not None and objective_settings(last)[0].scores is None
    )


def show(recipe: Recipe, mesh: Mesh, console: Console) -> Path:
    """Compare the first stage's model with the last's; print the report and write its page.

    Args:
      recipe: the recipe of a finished run with a synthetic world.
      mesh: the device mesh.
      console: where to print.

    Returns:
      The path of the page.
    """
    folder = Path(recipe.run.dir)
    comparison = compared(recipe, mesh, console)
    if first_process():
        write_samples(folder, comparison)
        write_report(folder)
        console.print(terminal(folder))
    path = folder / "report" / "report.html"
    console.print(f"report: {path}")
    return path


def compared(recipe: Recipe, mesh: Mesh, console: Console) -> Comparison:
    """The first stage's model and the last's on the held-out prompts of the synthetic world.

    Args:
      recipe: the recipe of a finished run with a synthetic world.
      mesh: the device mesh.
      console: where to print the progress of sampling.
    """
    began = time.monotonic()
    folder, names = Path(recipe.run.dir), list(recipe.training)
    before, after = (model_folder(recipe, name) for name in (names[0], names[-1]))
    held_out = Path(recipe.world_dir) / "held_out.jsonl"
    rows = prompt_rows(str(held_out))
    prompts = [str(row.prompt) for row in rows]
    how = Sampling(
        model="",
        chat=False,
        max_new=LONGEST,
        dtype="float32",
        seed=recipe.run.seed,
        batch_size=256,
    )
    samples = with_rewards(
        prompts,
        sample(before, how, mesh, rows, console).texts,
        sample(after, how, mesh, rows, console).texts,
        world.reward,
    )
    measured = read_run(folder).stages[-1].held_out.get("rewards/accuracies")
    accuracy = None if measured is None else measured.mean  # demonstrations have none
    rankings = ranking(recipe, before, mesh), ranking(recipe, after, mesh)
    change = rankings[1].mean - rankings[0].mean
    ranked = Measure(
        "ranking of pairs by logp per token" if accuracy is None else "same, by logp per token",
        str(rankings[0]),
        str(rankings[1]),
        f"{change:+.3f}",
    )
    measures = (ranked,)
    if accuracy is not None:
        # The reward is measured from the model before: for that model every pair is a tie.
        shown = str(share(accuracy, len(prompts)))
        measures = (Measure("reward accuracy, pairs", "all ties", shown, ""), ranked)
    return Comparison(names[0], names[-1], samples, measures, time.monotonic() - began)


def share(mean: float, count: int) -> Estimate:
    """The mean of `count` values of 0 or 1, with its standard error."""
    return Estimate(mean, math.sqrt(mean * (1 - mean) / count))


def ranking(recipe: Recipe, folder: Path, mesh: Mesh) -> Estimate:
    """Share of held-out pairs whose chosen response has more log-probability per token."""
    model = describe_model(folder, recipe.model, mesh)
    examples = load_examples(
        Data(path=""),
        f"{recipe.world_dir}/held_out.jsonl",
        "",
        Encoder(load_tokenizer(folder)),
        PAIRS,
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
