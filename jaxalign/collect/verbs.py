"""The verbs on files: `sample`, `score` and `pair`, each of which makes a file of JSON lines."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from ..data.sources import hub_fingerprint, local_files, raw_records
from ..digests import sha256
from ..errors import UserError
from ..files import write_whole
from ..hf.kept import Kept
from ..hf.load import Digest
from ..hf.open import fingerprints, open_config, open_model
from ..recipe.scorers import kind_of, name_of, read_scorers
from ..settings.pair import Pair
from ..settings.sample import Sample, problems
from ..settings.score import Score
from ..settings.score import Scorer as Record
from .pair import Counts, pair_rows
from .parts import Rows, line, write_parts
from .sampling import (
    Asked,
    Drawn,
    Sampler,
    check_prompts,
    open_prompter,
    read_prompted,
    sampled_rows,
)
from .score import open_scorers, read_rows, score_rows
from .scorers.answers import Scorer

SCORED = 256
"""Rows of a part of a scored file."""
Say = Callable[[str], object]
"""What prints a line of progress."""
Summary = dict[str, Any]
"""Numbers about a file, for the report."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where a verb works, and how it says so."""

    mesh: Mesh
    dtype: str
    """Dtype of models and matrix products, float32 or bfloat16."""
    say: Say
    digest: Digest = sha256
    """The SHA-256 of a file, which a caller may have kept."""
    now: datetime.datetime | None = None
    """The time that the clock of chat templates shows; none: the time of this call."""
    accept_changes: bool = False
    """Whether parts that were made from other inputs are made again."""
    record: bool = False
    """Whether a finished file has a record of its inputs, which the next call compares."""
    kept: Kept | None = None
    """Weights on the devices that may be the ones of the model that answers."""


def sample_file(
    how: Sample, folder: Path | None, out: Path, seed: int, place: Place, *, ids: bool = False
) -> Summary:
    """Sample answers to the prompts of a file.

    Args:
      how: the settings, with paths that exist.
      folder: folder of a checkpoint or of an adapter; None: the endpoint answers.
      out: the file to write.
      seed: seed of the first answer, and of the choice of prompts.
      place: the devices.
      ids: whether the rows have the tokens of every answer too, in the column `token_ids`.

    Raises:
      UserError: the prompts, the model and the settings do not fit together.
      RunError: the endpoint failed.
    """
    if wrong := problems(how):
        raise UserError("\n".join(f"sample.{name}: {said}" for name, said in wrong.items()))
    prompts = read_prompted(how, seed)
    size = max(how.part // how.n, 1)
    settings = dataclasses.asdict(dataclasses.replace(how, prompts="-", model=None))
    settings |= {"chat_template": None, "endpoint": how.endpoint and how.endpoint.answers}
    inputs = {"prompts": digest_of(how.prompts, place), "settings": _sha256([settings, seed])}
    inputs |= {"ids": "written"} if ids else {}
    if folder is not None:
        encoder = open_prompter(how, folder, place.now)
        check_prompts(prompts, encoder, how, open_config(folder))
        inputs |= fingerprints(folder, place.digest) | {"dtype": place.dtype}
    if how.chat_template is not None:
        inputs["chat template"] = place.digest(Path(how.chat_template))
    samplers: list[Sampler] = []

    def make(i: int) -> list[dict[str, Any]]:
        if not samplers:
            samplers.append(_sampler(how, folder, seed, place, ids=ids))
        chosen = prompts[i * size : (i + 1) * size]
        rows = sampled_rows(chosen, samplers[0], i * size)
        place.say(f"{i * size + len(chosen):,} of {len(prompts):,} prompts{_rate(samplers[0])}")
        return rows

    count = math.ceil(len(prompts) / size)
    make_file(out, inputs, count, make, place)
    return _of_answers(out) | (samplers[0].report() if samplers else {})


def _sampler(how: Sample, folder: Path | None, seed: int, place: Place, *, ids: bool) -> Sampler:
    if folder is None:
        return Asked(how, seed)
    opened = open_model(folder, place.mesh, dtype=place.dtype, kept=place.kept)
    return Drawn(opened, open_prompter(how, folder, place.now), how, seed, ids=ids)


def _rate(sampler: Sampler) -> str:
    rate = sampler.report().get("tokens/s")
    return "" if rate is None else f", {rate:,.0f} tokens/s"


def _of_answers(file: Path) -> Summary:
    """What a file of answers has."""
    answers = tokens = cut = rows = 0
    for _, raw in raw_records(str(file), ""):
        rows += 1
        answers += len(raw["responses"])
        tokens += sum(raw.get("tokens", ()))
        cut += raw["finishes"].count("length")
    return {"prompts": rows, "answers": answers, "tokens": tokens, "without_end": cut / answers}


def score_file(how: Score, out: Path, place: Place) -> Summary:
    """Score the answers of a file.

    Args:
      how: the settings, with paths that exist.
      out: the file to write.
      place: the devices.

    Raises:
      UserError: a row, a scorer and the settings do not fit together.
      RunError: a scorer failed.
    """
    rows = read_rows(how.data)
    records = read_scorers(how.by)
    scorers = open_scorers(records, place.mesh, place.dtype)
    named = zip(records, scorers, strict=True)
    settings = [how.combine, [[kind_of(r), dict(scorer.fingerprint)] for r, scorer in named]]
    inputs = {"rows": digest_of(how.data, place), "scorers": _sha256(settings)}

    def make(i: int) -> list[dict[str, Any]]:
        chosen = rows[i * SCORED : (i + 1) * SCORED]
        scored = score_rows(chosen, records, scorers, how.combine)
        place.say(f"{i * SCORED + len(chosen):,} of {len(rows):,} rows scored")
        return scored

    count = math.ceil(len(rows) / SCORED)
    make_file(out, inputs, count, make, place)
    return _of_scores(out) | _reports(records, scorers)


def make_file(
    out: Path, inputs: Mapping[str, str], count: int, make: Callable[[int], Rows], place: Place
) -> None:
    """Write a file of JSON lines, part by part; see `parts.write_parts`.

    Args:
      out: the file.
      inputs: what the rows depend on: names and fingerprints.
      count: number of parts.
      make: the rows of a part, by its number.
      place: where the verb works.

    Raises:
      UserError: parts, or the file, were made from other inputs.
      RunError: a part cannot be written.
    """
    changes, record = place.accept_changes, place.record
    write_parts(out, inputs, count, make, accept_changes=changes, record=record)


def _reports(records: Sequence[Record], scorers: Sequence[Scorer]) -> Summary:
    """The reports of scorers; of several, each under its name."""
    found: Summary = {}
    for record, scorer in zip(records, scorers, strict=True):
        begin = f"{name_of(record)}/" if len(records) > 1 else ""
        found |= {f"{begin}{name}": value for name, value in scorer.report().items()}
    return found


def _of_scores(file: Path) -> Summary:
    """The distribution of the scores of a file."""
    found: list[float] = []
    for _, raw in raw_records(str(file), ""):
        names = ("score", "score_chosen", "score_rejected")
        found += raw["scores"] if "scores" in raw else [raw[n] for n in names if n in raw]
    values = np.array(found)
    numbers = {"mean": values.mean(), "std": values.std(), "min": values.min(), "max": values.max()}
    return {"scores": len(found)} | {name: float(value) for name, value in numbers.items()}


def pair_file(how: Pair, out: Path, seed: int) -> Counts:
    """Make training data of the scored answers of a file.

    Args:
      how: the settings, with paths that exist.
      out: the file to write.
      seed: seed of the random choices, 0 or more.

    Raises:
      UserError: a row and the settings do not fit together, or no row is made; the message has the
        counts.
    """
    rows, counts = pair_rows(raw_records(how.data, "train"), how, seed)
    if not rows:
        found = "\n".join(f"  {text}" for text in counts.lines())
        raise UserError(
            f"{how.data}: no row is left for `how: {how.how}`\n{found}\nloosen the options, or "
            "sample more answers"
        )
    write_whole(out, "".join(map(line, rows)))
    return counts


def digest_of(path: str, place: Place) -> str:
    """What tells whether a data set has changed: SHA-256 of its files, or of the hub's own.

    Args:
      path: a file, a glob or a folder, or a data set of the hub.
      place: the digest of a file is read.

    Raises:
      UserError: it is missing.
    """
    files = local_files(path)
    return (
        hub_fingerprint(path, "train") if files is None else _sha256(list(map(place.digest, files)))
    )


def _sha256(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else str(value)
