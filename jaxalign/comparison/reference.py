"""Measures against a reference: the KL divergence of answers, the change of held-out pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..collect.sampling import Prompted, ids_of, open_prompter
from ..collect.score import read_rows
from ..collect.scorers.answers import Answered, answered
from ..collect.scorers.models import Judged, spread
from ..collect.verbs import SCORED, Place, digest_of, make_file
from ..data.examples import Example
from ..data.records import PAIR
from ..data.sources import raw_records
from ..errors import UserError
from ..settings.sample import Sample
from . import measures
from .measures import Measured

Rows = list[dict[str, Any]]


def divergence(
    model: Judged,
    reference: Judged,
    folder: Path,
    sample: Sample,
    prompts: Sequence[Prompted],
    place: Place,
) -> Measured:
    """The KL divergence of a model from the reference by its own answers, nats an answer.

        mean over answers of sum over tokens of (log p(token) - log p_reference(token))

    Both models read the same tokens in the same way, so a model has exactly 0 from itself.

    Args:
      model: the model.
      reference: the reference, with the same vocabulary.
      folder: the folder that has `answers.jsonl` of the model and gets `logps.jsonl`.
      sample: how the answers were drawn.
      prompts: the prompts.
      place: the devices.

    Raises:
      UserError: the reference lacks a token, or the file was made from other inputs.
    """
    rows = read(folder / "answers.jsonl")
    encoder = open_prompter(sample, model.folder, place.now)

    def make(i: int) -> Rows:
        part = slice(i * SCORED, (i + 1) * SCORED)
        ids = ids_of(prompts[part], encoder, sample)
        examples = [
            drawn_example(prompt, row["token_ids"], asked.row.where, reference.spec.vocab)
            for prompt, row, asked in zip(ids, rows[part], prompts[part], strict=True)
        ]
        own, ref = model.statistics(examples), reference.statistics(examples)
        place.say(f"{i * SCORED + len(examples):,} of {len(rows):,} prompts read by the reference")
        return [
            {"logps": a.logp.tolist(), "reference_logps": b.logp.tolist()}
            for a, b in zip(own, ref, strict=True)
        ]

    out = folder / "logps.jsonl"
    inputs = _fingerprint("model", model) | _fingerprint("reference", reference)
    inputs |= {"answers": place.digest(folder / "answers.jsonl")}
    make_file(out, inputs, math.ceil(len(rows) / SCORED), make, place)
    found = [np.subtract(row["logps"], row["reference_logps"]) for row in read(out)]
    return Measured.of([values.mean() for values in found])


def drawn_example(
    prompt: np.ndarray, answers: Sequence[Sequence[int]], where: str, vocab: int
) -> Example:
    """The drawn answers to a prompt, of which every token is scored.

    Args:
      prompt: token ids, [length] int32.
      answers: token ids of each answer, with the stop token.
      where: the place of the prompt, for messages.
      vocab: size of the vocabulary of the reference.

    Raises:
      UserError: a token is not in it.
    """
    largest = max(token for ids in answers for token in ids)
    if largest >= vocab:
        raise UserError(
            f"{where}: an answer has the token {largest}, and the reference has the tokens 0 to "
            f"{vocab - 1}, so the KL divergence is not finite; give another reference"
        )
    return Example.of(prompt, *(np.array(ids, np.int32) for ids in answers), where=where)


def read_pairs(path: str) -> list[Answered]:
    """The held-out pairs.

    Args:
      path: a file, or a data set of the hub.

    Raises:
      UserError: the file is missing or broken, or a row is no pair.
    """
    rows = [answered(raw, where) for where, raw in read_rows(path)]
    for row in rows:
        if not row.record.is_pair:
            raise UserError(f"{row.where}: held-out data are pairs; give chosen and rejected")
    return rows


def pair_logps(model: Judged, path: str, out: Path, template: str | None, place: Place) -> Rows:
    """Log-probabilities of the held-out pairs, nats a response, in `chosen` and `rejected`.

    Args:
      model: the model.
      path: the pairs.
      out: the file to write.
      template: the file of a chat template instead of the tokenizer's.
      place: the devices.

    Raises:
      UserError: a pair does not fit the model, or the file was made from other inputs.
    """
    rows = read_pairs(path)

    def make(i: int) -> Rows:
        part = rows[i * SCORED : (i + 1) * SCORED]
        found = model.statistics(model.examples(part, ended=True))
        place.say(f"{i * SCORED + len(part):,} of {len(rows):,} held-out pairs")
        return [
            dict(zip(PAIR, spread(stats.logp.tolist(), row), strict=True))
            for stats, row in zip(found, part, strict=True)
        ]

    inputs = _fingerprint("model", model) | {"pairs": digest_of(path, place)}
    if template is not None:
        inputs |= {"chat template": place.digest(Path(template))}
    make_file(out, inputs, math.ceil(len(rows) / SCORED), make, place)
    return read(out)


def changes(before: Rows, after: Rows) -> dict[str, Measured]:
    """The measures of held-out pairs; a tie counts 1/2 in both accuracies.

    Args:
      before: the log-probabilities of the pairs under the reference, of `pair_logps`.
      after: the same under the model.
    """
    old, new = (
        np.array([[row[name] for name in PAIR] for row in rows]) for rows in (before, after)
    )
    change = new - old
    return {
        "change_chosen": Measured.of(change[:, 0]),
        "change_rejected": Measured.of(change[:, 1]),
        "ranking": Measured.of(measures.wins(new[:, 1], new[:, 0])),
        "reward_accuracy": Measured.of(measures.wins(change[:, 1], change[:, 0])),
    }


def read(file: Path) -> Rows:
    """The rows of a file of JSON lines that a comparison has made."""
    return [dict(raw) for _, raw in raw_records(str(file), "train")]


def _fingerprint(kind: str, model: Judged) -> dict[str, str]:
    return {f"{kind}: {name}": value for name, value in model.fingerprint.items()}
