"""Answers of the weights in training to held-out prompts, measured at each evaluation of a stage.

Held-out pairs are texts of others. Only the model's own answers show how far its distribution has
moved, and whether its answers still end.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..collect.decode import Answer, check_prompt, generate
from ..collect.sample import prompt_ids
from ..collect.scorers.rules import repeated
from ..collect.statistics import token_logps
from ..core.sharding import batch_shards
from ..data.ask import prompt_rows
from ..data.examples import Example
from ..data.pack import cell_size
from ..errors import UserError
from ..hf import load
from ..hf.rounding import exported
from ..models.adapted import joined
from ..models.decoder import Model, Params
from ..models.families import read_config
from ..report.samples import Estimate
from ..settings import EvalSamples
from ..settings.score import Repetition
from ..update.state import TrainState
from ..update.step import Fixed
from .data_stage import seed_of, waits
from .evaluate import HeldOut
from .held_out import Evaluation, lossy_kinds
from .phases import Phases
from .reference import reference_model
from .stage import StageRun
from .weights import reference_source, starting_params

METRICS = tuple(f"samples/{name}" for name in ("kl", "length", "unfinished", "repetition"))


class Prompt(NamedTuple):
    """A prompt to answer."""

    ids: np.ndarray  # [length] int32
    where: str


def with_samples(evaluate: Evaluation, stage: StageRun, fixed: Fixed, phases: Phases) -> Evaluation:
    """An evaluation that also measures own answers, if the stage asks for them.

    Args:
      evaluate: the evaluation on held-out data.
      stage: the stage.
      fixed: the weights that training reads and never changes.
      phases: the clock of the stage.
    """
    how = stage.settings.eval_samples
    if how is None:
        return evaluate
    prompts = [prompt.ids for prompt in sample_prompts(stage)]
    kinds = lossy_kinds(stage)

    def policy(params: Params, last: bool) -> tuple[Model, Params]:
        """The decoder that draws, and its weights, rounded as in the export if it is the last."""
        if stage.adapted is None or fixed.base is None:
            return stage.model, exported(params, kinds) if last else params
        if last:
            return stage.model, exported(stage.adapted.merged(fixed.base, params), kinds)
        return stage.adapted.whole, joined(fixed.base, params)

    def both(state: TrainState, *, last: bool) -> HeldOut:
        found = evaluate(state, last=last)
        with phases("sampling"):
            own = _measured(stage, how, prompts, fixed, *policy(state.params, last))
        return HeldOut({**found, **own}, found.standard_errors | own.standard_errors)

    return both


def _measured(
    stage: StageRun,
    how: EvalSamples,
    prompts: Sequence[np.ndarray],
    fixed: Fixed,
    model: Model,
    params: Params,
) -> HeldOut:
    """The metrics of one answer to each prompt.

    Args:
      stage: the stage.
      how: the settings of the answers.
      prompts: token ids of the prompts, [length] each.
      fixed: the weights that training reads and never changes.
      model: the decoder that draws.
      params: its weights.

    Returns:
      `samples/kl`, the mean over answers of log p(answer) under the model minus the same under the
      reference, nats (y drawn from p, so its expectation is the KL divergence from the
      reference); `samples/length`, tokens, a stop token included; `samples/unfinished`, the share
      of answers without an end; `samples/repetition`, the score of the scorer `repetition`.
    """
    seed, stop = seed_of(stage.recipe, stage.name), stage.encoder.all_stops()
    answers = generate(model, params, prompts, max_new=how.max_new, stop=stop, seed=seed)
    own = _logps(stage, how, model, params, prompts, answers)
    # The reference is in memory for this pass alone, unless training holds it too.
    reference = _logps(stage, how, *_reference(stage, fixed), prompts, answers)
    words = Repetition().n
    values = {
        "kl": (own - reference).sum(-1).tolist(),
        "length": [float(len(answer.drawn)) for answer in answers],
        "unfinished": [float(not answer.stopped) for answer in answers],
        "repetition": [repeated(stage.encoder.text(a.tokens), words) for a in answers],
    }
    found = {f"samples/{name}": Estimate.of(each) for name, each in values.items()}
    errors = {name: one.error for name, one in found.items() if len(answers) > 1}
    return HeldOut({name: one.mean for name, one in found.items()}, errors)


def _logps(
    stage: StageRun,
    how: EvalSamples,
    model: Model,
    params: Params,
    prompts: Sequence[np.ndarray],
    answers: Sequence[Answer],
) -> np.ndarray:
    """The log-probabilities of the tokens of answers under a model, [answers, T] float64, nats."""
    shards = batch_shards(stage.mesh)
    settings = stage.settings
    assert settings.microbatches != "auto", "plan.settled comes first"
    cell = min(
        cell_size(settings.batch_size, settings.microbatches, shards),
        -(-len(prompts) // shards),
    )
    pairs = zip(prompts, answers, strict=True)
    examples = [Example.of(prompt, answer.drawn) for prompt, answer in pairs]
    longest = max(map(len, prompts)) + how.max_new
    return token_logps(
        model, params, examples, cell=cell, longest=longest, scored=how.max_new
    ).astype(np.float64)


def _reference(stage: StageRun, fixed: Fixed) -> tuple[Model, Params]:
    """The model that answers are compared with: `reference.path`, or the start of the stage.

    Of a stage with terms it is the reference of the first one.
    """
    source = reference_source(stage)
    if stage.adapted is not None and fixed.base is not None and source == stage.source:
        return stage.model, fixed.base
    if stage.adapted is None and fixed.reference is not None:
        return stage.model, fixed.reference
    model = reference_model(stage, source)
    own = source == stage.source
    return model, starting_params(stage) if own else load.load_params(source, model)


def sample_prompts(stage: StageRun) -> list[Prompt]:
    """The prompts that the evaluations of a stage answer, the same ones each time.

    Raises:
      UserError: there are fewer than asked for, or one cannot be read.
    """
    how = stage.settings.eval_samples
    assert how is not None
    rng = np.random.default_rng(seed_of(stage.recipe, stage.name))

    def chosen(total: int, source: str | None) -> list[int]:
        if total < how.count:
            raise UserError(
                f"stages.{stage.name}.eval_samples.count: {source} has {total} prompts, fewer than "
                f"{how.count}; set it to {total} or less"
            )
        return sorted(rng.permutation(total)[: how.count].tolist())

    if how.prompts is None:
        term = next(term for term in stage.terms if term.held_out is not None)
        assert term.held_out is not None
        taken = chosen(len(term.held_out), term.settings.data.eval_path)
        items = [term.held_out[i] for i in taken]
        return [Prompt(item.prompt, item.where) for item in items]
    rows = prompt_rows(stage.recipe.locate(how.prompts))
    rows = [rows[i] for i in chosen(len(rows), how.prompts)]
    variables = stage.settings.data.chat_template_kwargs
    ids = prompt_ids(stage.encoder, rows, chat=False, variables=variables)
    return [Prompt(own, row.where) for own, row in zip(ids, rows, strict=True)]


def check_samples(stage: StageRun) -> None:
    """Refuse prompts or a reference that do not fit the answers of a stage.

    Raises:
      UserError: names the prompt, or what the reference lacks.
    """
    how = stage.settings.eval_samples
    if how is None:
        return
    where, spec = f"stages.{stage.name}.eval_samples", stage.model.spec
    specs = {stage.source: spec}
    if not waits(stage.recipe, stage.settings.reference.path or ""):
        source: Path = reference_source(stage)
        specs[source] = read_config(load.load_config(source))
    for source, own in specs.items():
        if own.vocab < spec.vocab:
            raise UserError(
                f"{where}: the reference {source} has {own.vocab} tokens, and the model may draw "
                f"each of its {spec.vocab}; leave eval_samples out, or take another reference.path"
            )
    for prompt in sample_prompts(stage):
        for own in specs.values():
            check_prompt(own, prompt.ids, f"{where}: {prompt.where}", how.max_new)
