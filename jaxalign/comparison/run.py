"""A comparison of models: answers, scores and log-probabilities as files, then their measures.

The folder of a comparison has a folder for each model, whose files the verbs `sample` and `score`
make part by part. A file that is there is read, if its record says that it was made from the same
inputs; so a second call draws nothing again, and a killed one loses one part.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..collect.sampling import Prompted, check_prompts, open_prompter, read_prompted
from ..collect.score import open_scorers
from ..collect.scorers.answers import text_of
from ..collect.scorers.models import Judged
from ..collect.verbs import Place, sample_file, score_file
from ..data.ask import PromptRow
from ..diagnostics.tokens import n_grams
from ..errors import UserError
from ..hf.open import open_config
from ..hf.peft import base_folder
from ..hf.tokenizer import load_tokenizer, read_template
from ..recipe.scorers import read_scorers
from ..report.samples import SHOWN
from ..settings.compare import Compare, problems
from ..settings.sample import Sample
from ..settings.score import Judge, Score
from ..shown import distinct_ending
from . import measures
from .measures import Measured
from .reference import Rows, changes, divergence, pair_logps, read, read_pairs
from .result import Compared, ModelResult, PairResult, Shown


class Candidate(NamedTuple):
    """A model of a comparison."""

    name: str
    path: str
    """As it was given."""
    folder: Path
    """The checkpoint or the adapter."""


class _Job(NamedTuple):
    """What the files of all models have in common."""

    how: Compare
    sample: Sample
    seed: int
    out: Path
    place: Place
    reference: Judged | None


def distinct_endings(paths: Sequence[str]) -> list[str]:
    """The shortest ending of each path that is the ending of no other path.

    An ending is never `model` alone, which is the name of the folder of every exported model.

    Args:
      paths: two or more paths, or names on the hub.

    Raises:
      UserError: two are the same.
    """
    whole = [os.path.abspath(os.path.expanduser(path)) for path in paths]
    parts = [Path(path).parts for path in whole]
    found: list[str] = []
    for i, own in enumerate(parts):
        if own in parts[:i]:
            raise UserError(f"models: {paths[i]} is given twice; give each model once")
        count = distinct_ending(own, parts, least=2 if own[-1] == "model" else 1)
        # The root is no name of a folder.
        found.append("/".join(filter(None, (part.strip("/") for part in own[-count:]))))
    return found


def compare_models(
    how: Compare, sample: Sample, folders: Sequence[Path], out: Path, seed: int, place: Place
) -> Compared:
    """Let every model answer the prompts, score the answers, and measure.

    Args:
      how: the models and the measurements.
      sample: the prompts and how to draw.
      folders: the folder of each model of `how`, in their order.
      out: the folder to write.
      seed: seed of the first answer of every model, and of the choice of prompts.
      place: the devices.

    Raises:
      UserError: the models, the prompts and the settings do not fit together, or a file was made
        from other inputs.
      RunError: a scorer failed, or a file cannot be written.
    """
    if wrong := problems(how, sample):
        raise UserError("\n".join(f"compare.{name}: {said}" for name, said in wrong.items()))
    names = distinct_endings(how.models)
    candidates = list(map(Candidate, names, how.models, folders))
    # All models see the same clock in a chat template.
    now = place.now or datetime.datetime.now()
    place = dataclasses.replace(place, record=True, now=now)
    prompts = read_prompted(sample, seed)
    reference = _reference(how, sample, place)
    job = _Job(how, sample, seed, out, place, reference)
    _check(job, candidates, prompts)
    rows = [_scored(job, candidate) for candidate in candidates]
    found = [
        ModelResult(c.name, c.path, _of_answers(own) | _of_reference(job, c, prompts))
        for c, own in zip(candidates, rows, strict=True)
    ]
    pairs = [_pair(c.name, rows[0], own) for c, own in zip(candidates[1:], rows[1:], strict=True)]
    shown = [_shown(prompt.row, [own[i] for own in rows]) for i, prompt in enumerate(prompts)]
    return Compared(
        models=tuple(found),
        pairs=tuple(pairs),
        prompts=len(prompts),
        answers=sample.n,
        settings=_settings(job),
        shown=tuple(shown[:SHOWN]),
    )


def _reference(how: Compare, sample: Sample, place: Place) -> Judged | None:
    """The reference, checked as far as no weights are needed."""
    if how.reference is None:
        return None
    model = _judged(how.reference, "reference", sample, place)
    if model.spec.scores:
        raise UserError(
            f"reference: {how.reference} is a reward model, which has no log-probabilities; give "
            "a causal language model"
        )
    return model


def _check(job: _Job, candidates: Sequence[Candidate], prompts: Sequence[Prompted]) -> None:
    """Refuse what would fail after hours of drawing.

    Raises:
      UserError: a model cannot answer a prompt, a scorer cannot compare models, or the reference
        or the held-out pairs do not fit.
    """
    how, sample, place = job.how, job.sample, job.place
    for record in read_scorers(how.by):
        if isinstance(record, Judge) and record.mode == "pairs" and record.against is None:
            raise UserError(
                "by.judge: in pairs it compares the answers of one model with each other; give "
                "`against`, the column of an answer that all answers are compared with, or `mode: "
                "rating`"
            )
    open_scorers(read_scorers(how.by), place.mesh, place.dtype)
    vocab = None
    if job.reference is not None:
        vocab = load_tokenizer(base_folder(job.reference.folder)).get_vocab()
    for candidate in candidates:
        encoder = open_prompter(sample, candidate.folder, place.now)
        check_prompts(prompts, encoder, sample, open_config(candidate.folder))
        if job.reference is None:
            continue
        if encoder.tokenizer.get_vocab() != vocab:
            raise UserError(
                f"reference: {how.reference} has another vocabulary than {candidate.path}, so the "
                "same tokens are other texts; give a reference with the same tokenizer"
            )
        check_prompts(prompts, encoder, sample, job.reference.spec)
    if job.reference is not None and how.held_out is not None:
        job.reference.examples(read_pairs(how.held_out), ended=True)


def _scored(job: _Job, candidate: Candidate) -> Rows:
    """The rows of the scored answers of a model, which are made if they are not there."""
    place = _named(job.place, candidate.name)
    answers, scores = (job.out / candidate.name / f"{x}.jsonl" for x in ("answers", "scores"))
    sample_file(job.sample, candidate.folder, answers, job.seed, place, ids=True)
    how = Score(data=str(answers), by=job.how.by, combine=job.how.combine)
    score_file(how, scores, place)
    return read(scores)


def _named(place: Place, name: str) -> Place:
    """The same place; its progress is of one model."""
    return dataclasses.replace(place, say=lambda text: place.say(f"{name}: {text}"))


def _of_answers(rows: Rows) -> dict[str, Measured]:
    """The measures that need the scored answers alone."""

    def means(values: Callable[[Mapping[str, Any]], Any]) -> Measured:
        return Measured.of([float(np.mean(values(row))) for row in rows])

    return {
        "score": means(lambda row: row["scores"]),
        "tokens": means(lambda row: row["tokens"]),
        "without_end": means(lambda row: [end == "length" for end in row["finishes"]]),
        "distinct_1": Measured.of([_distinct(row, 1) for row in rows]),
        "distinct_2": Measured.of([_distinct(row, 2) for row in rows]),
    }


def _distinct(row: Mapping[str, Any], n: int) -> float:
    """Distinct n-grams / n-grams of the answers to a prompt together; NaN if there are none."""
    ends = zip(row["token_ids"], row["finishes"], strict=True)
    distinct, count = n_grams([ids[: len(ids) - (end == "stop")] for ids, end in ends], n)
    return distinct / count if count else math.nan


def _pair(name: str, baseline: Rows, other: Rows) -> PairResult:
    """A model against the baseline: answer i of the one with answer i of the other."""
    scores = [np.array([row["scores"] for row in rows], np.float64) for rows in (baseline, other)]
    lengths = [
        np.array([[len(text) for text in row["responses"]] for row in rows], np.float64)
        for rows in (baseline, other)
    ]
    won = measures.wins(*scores)
    return PairResult(
        name=name,
        win_rate=measures.win_rate(won.mean(1)),
        controlled=measures.controlled_win_rate(won, lengths[1] - lengths[0]),
        difference=Measured.of((scores[1] - scores[0]).mean(1)),
    )


def _of_reference(
    job: _Job, candidate: Candidate, prompts: Sequence[Prompted]
) -> dict[str, Measured]:
    """The measures against the reference, if there is one."""
    if job.reference is None:
        return {}
    sample, held_out = job.sample, job.how.held_out
    place, folder = _named(job.place, candidate.name), job.out / candidate.name
    model = _judged(str(candidate.folder), "models", sample, place)
    found = {"kl": divergence(model, job.reference, folder, sample, prompts, place)}
    if held_out is None:
        return found
    of_reference = job.out / "reference_held_out.jsonl"
    template = sample.chat_template
    before = pair_logps(
        job.reference, held_out, of_reference, template, _named(job.place, "reference")
    )
    after = pair_logps(model, held_out, folder / "held_out.jsonl", template, place)
    return found | changes(before, after)


def _judged(path: str, setting: str, sample: Sample, place: Place) -> Judged:
    """A model that reads answers by the chat template of the draws."""
    template = read_template(sample.chat_template)
    return Judged(path, place.mesh, place.dtype, setting, template)


def _shown(row: PromptRow, rows: Rows) -> Shown:
    """A prompt with the first answer of every model."""
    answers = tuple((str(own["responses"][0]), float(own["scores"][0])) for own in rows)
    return Shown(text_of(row.prompt), answers)


def _settings(job: _Job) -> dict[str, Any]:
    """What the result depends on, as plain values."""
    drawn = ("n", "temperature", "top_k", "top_p", "max_new", "chat_template", "limit")
    values = {"prompts": job.sample.prompts} | {x: getattr(job.sample, x) for x in drawn}
    values |= {"chat_template_kwargs": dict(job.sample.chat_template_kwargs), "seed": job.seed}
    values |= {x: getattr(job.how, x) for x in ("by", "combine", "reference", "held_out")}
    return json.loads(json.dumps(values | {"dtype": job.place.dtype}, default=str))
